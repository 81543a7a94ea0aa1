"""A run's folder: its names and lock, checkpoints, metrics log, and what is printed while it runs."""
