"""Starting a training on one host or many: torchrun, DeepSpeed's launcher, Slurm, Kubernetes.

`python -m launch LAUNCHER CONFIG`. A launcher is one file here, and one entry in `launch.registry`.
"""
