"""Start a training on one host or many: torchrun, DeepSpeed's launcher, Slurm, Kubernetes.

`vgg-ddp launch LAUNCHER CONFIG`, or `python -m launch LAUNCHER CONFIG` in a checkout. Each launcher is one file here and
one entry in registry.py.

An installation has this package under the name `vgg_ddp.launch`, so that it takes no general name in site-packages. Modules
here therefore import one another by relative imports, and start processes by `__package__`.
"""
