"""`vgg-ddp doctor`: what this machine has, what it lacks, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil

from vgg_ddp import cores
from vgg_ddp.errors import EXIT_OK, EXIT_USER_ERROR
from vgg_ddp.optim import nvidia_apex

REQUIRED: tuple[str, ...] = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "simplejpeg",
    "safetensors",
    "msgspec",
    "PyYAML",
)
REQUIRED += ("filelock", "rich", "scikit-learn", "scipy", "matplotlib", "jinja2", "markupsafe")
DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")  # for either version of CUDA
OPTIONAL = {
    "wandb": "tracking.wandb; pip install 'vgg_ddp[wandb]'",
    "tensorboard": "tracking.tensorboard; pip install 'vgg_ddp[tensorboard]'",
    "deepspeed": "engine=deepspeed; pip install 'vgg_ddp[deepspeed]'",
    "onnxruntime": "vgg-ddp export --format onnx; pip install 'vgg_ddp[export]'",
}


def examine() -> int:
    """Print a line for each thing; the exit code says whether training can start."""
    free = shutil.disk_usage(".").free / 1e9
    print(f"ok    Python {platform.python_version()}, {cores.usable()} cores, {free:.0f} GB free here")
    missing = [name for name in REQUIRED if not _found(f"lacks {name}: pip install {name}", name)]
    _found("lacks NVIDIA DALI: images are loaded by the torch loader; pip install 'vgg_ddp[dali]'", *DALI)
    for name, use in OPTIONAL.items():
        _found(f"note  no {name}: only needed for {use}", name)
    _examine_apex()
    if missing:
        return EXIT_USER_ERROR
    _examine_devices()
    return EXIT_OK


def _found(otherwise: str, *names: str) -> bool:
    """Print the version of the first of these packages that is installed, or `otherwise`; whether one is."""
    for name in names:
        try:
            print(f"ok    {name} {importlib.metadata.version(name)}")
            return True
        except importlib.metadata.PackageNotFoundError:
            continue
    print(otherwise)
    return False


def _examine_apex() -> None:
    status = nvidia_apex.status()
    if status == "compiled":
        print(f"ok    NVIDIA apex, compiled{' with its cross entropy' if nvidia_apex.has_xentropy() else ''}")
    else:
        reason = nvidia_apex.MEANINGS[status]
        print(f"note  {reason}: torch's fused optimizers are used; to build it, {nvidia_apex.BUILD}")


def _examine_devices() -> None:
    import torch

    from vgg_ddp.distributed.world import device_of
    from vgg_ddp.optim.precision import fastest

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"ok    GPUs: {', '.join(gpus)}" if gpus else "note  no GPU: training runs on the CPU")
    precision, reason = fastest(device_of(0))
    print(f"ok    precision=auto is {precision} here: {reason}")
