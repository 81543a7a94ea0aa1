"""`vgg-ddp doctor`: what this machine has, what it lacks, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil

from vgg_ddp import cores
from vgg_ddp.data import nvidia_dali
from vgg_ddp.distributed.devices import Devices
from vgg_ddp.errors import EXIT_OK, EXIT_USER_ERROR, UserError
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
OPTIONAL = {
    "wandb": "tracking.wandb; pip install 'vgg_ddp[wandb]'",
    "tensorboard": "tracking.tensorboard; pip install 'vgg_ddp[tensorboard]'",
    "deepspeed": "engine=deepspeed; pip install 'vgg_ddp[deepspeed]'",
    "onnxruntime": "vgg-ddp export --format onnx; pip install 'vgg_ddp[export]'",
    "optuna": "vgg-ddp study; pip install 'vgg_ddp[study]'",
    "pyarrow": "Parquet files; pip install 'vgg_ddp[parquet]'",
}


def examine() -> int:
    """Print a line for each thing; the exit code says whether training can start."""
    free = shutil.disk_usage(".").free / 1e9
    print(f"ok    Python {platform.python_version()}, {cores.usable()} cores, {free:.0f} GB free here")
    missing = [name for name in REQUIRED if not _found(f"lacks {name}: pip install {name}", name)]
    if _found("lacks NVIDIA DALI: Pillow loads the images; pip install 'vgg_ddp[dali]'", *nvidia_dali.PACKAGES):
        problem = nvidia_dali.problem(on_gpu=nvidia_dali.driver_cuda() is not None)
        print(f"note  {problem}; Pillow loads the images" if problem else "ok    NVIDIA DALI runs here")
    for name, use in OPTIONAL.items():
        _found(f"note  no {name}: only needed for {use}", name)
    _examine_apex()
    if missing:
        return EXIT_USER_ERROR
    _examine_compilers()
    _examine_devices()
    return EXIT_OK


def _found(otherwise: str, *names: str) -> bool:
    """Print the version of the first of these packages that is installed, or `otherwise`; return whether one is."""
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


def _examine_compilers() -> None:
    from vgg_ddp.model.fusion import has_c_compiler

    if shutil.which(os.environ.get("CXX", "g++")) is None:
        print(
            "note  no C++ compiler: only needed for compile and engine=deepspeed on a CPU; install g++, or name one in CXX"
        )
    if not has_c_compiler():
        print(
            "note  no C compiler: only needed for compile and model.fused on a GPU; install gcc or clang, or name one in CC"
        )
    if importlib.util.find_spec("triton") is None:
        print("note  no triton: only needed for compile and model.fused on a GPU; pip install triton")


def _examine_devices() -> None:
    from vgg_ddp.distributed.world import device_of
    from vgg_ddp.optim.precision import fastest
    from vgg_ddp.training import environment

    print(
        f"ok    torch's libraries: {', '.join(' '.join(item) for item in environment.cuda_versions().items()) or 'no CUDA'}"
    )
    for gpu in environment.gpus():
        print(f"ok    GPU {', '.join(f'{fact} {value}' for fact, value in gpu.items())}")
    try:
        Devices(device="cuda").gpus()
    except UserError as error:
        print(f"note  training runs on the CPU ({error})")
    precision, reason = fastest(device_of(0))
    print(f"ok    precision=auto is {precision} here: {reason}")
