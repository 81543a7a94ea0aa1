"""Start a training on one host or many: torchrun, DeepSpeed's launcher, Slurm, Kubernetes.

`vgg-ddp launch LAUNCHER CONFIG`, or `python -m launch LAUNCHER CONFIG` in a checkout. Each launcher is one file here and
one entry in registry.py.

This package is installed as `vgg_ddp.launch`, so that it takes no generic name in site-packages. Its modules therefore
use relative imports, and start processes by `__package__`.
"""
