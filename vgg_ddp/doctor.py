"""Says what this machine has, what it lacks, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil

from vgg_ddp.errors import EXIT_OK, EXIT_USER_ERROR
from vgg_ddp.optim import nvidia_apex

NEEDED = ("torch", "torchvision", "numpy", "pillow", "safetensors", "scikit-learn", "matplotlib", "jinja2", "rich")
OPTIONAL = {
    "wandb": "tracking.wandb; pip install 'vgg_ddp[wandb]'",
    "tensorboard": "tracking.tensorboard; pip install 'vgg_ddp[tensorboard]'",
    "deepspeed": "engine=deepspeed; pip install 'vgg_ddp[deepspeed]'",
    "onnxruntime": "vgg-ddp export --format onnx; pip install 'vgg_ddp[export]'",
}
DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")


def examine() -> int:
    """Print a line for each thing; the exit code says whether training can start."""
    lacking = []
    print(
        f"ok    Python {platform.python_version()}, {len(os.sched_getaffinity(0))} cores, {free_gigabytes():.0f} GB free here"
    )
    for package in NEEDED:
        version = installed(package)
        print(f"ok    {package} {version}" if version else f"lacks {package}: pip install {package}")
        lacking += [] if version else [package]
    dali = next((f"{name} {installed(name)}" for name in DALI if installed(name)), None)
    print(
        f"ok    {dali}"
        if dali
        else "lacks NVIDIA DALI: images are loaded by the torch loader; pip install 'vgg_ddp[dali]'"
    )
    for package, use in OPTIONAL.items():
        version = installed(package)
        print(f"ok    {package} {version}" if version else f"note  no {package}: only needed for {use}")
    apex = nvidia_apex.status()
    extra = " with its cross entropy" if nvidia_apex.has_xentropy() else ""
    print(
        f"ok    NVIDIA apex, compiled{extra}"
        if apex == "compiled"
        else f"note  {nvidia_apex.MEANINGS[apex]}: torch's fused optimizers are used; to build it, {nvidia_apex.BUILD}"
    )
    if not lacking:
        import torch

        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        print(f"ok    GPUs: {', '.join(gpus)}" if gpus else "note  no GPU: training runs on the CPU")
        if not gpus:
            from vgg_ddp.optim.precision import fastest

            precision, reason = fastest(torch.device("cpu"))
            print(f"ok    precision=auto is {precision} here: {reason}")
    return EXIT_USER_ERROR if lacking else EXIT_OK


def installed(package: str) -> str | None:
    """The version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def free_gigabytes() -> float:
    return shutil.disk_usage(".").free / 1e9
