"""The launchers by name. A new one is a file with a `Launcher`, and a line here."""

from . import deepspeed, kubernetes, slurm, torchrun

LAUNCHERS = {
    "torchrun": torchrun.LAUNCHER,
    "deepspeed": deepspeed.LAUNCHER,
    "slurm": slurm.LAUNCHER,
    "kubernetes": kubernetes.LAUNCHER,
}
