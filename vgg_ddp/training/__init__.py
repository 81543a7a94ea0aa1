"""What a training is built from: the job and its parts, fitting to memory, the recorder, stopping, the environment."""
