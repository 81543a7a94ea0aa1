"""NVIDIA's apex: whether it is installed, compiled, and to be used. It is not imported for that, which may fail.

This project uses `apex.optimizers.FusedSGD`, `FusedLAMB` and `apex.contrib.xentropy`, all for GPUs.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vgg_ddp.config.optimizer import OptimizerConfig
from vgg_ddp.errors import UserError

if TYPE_CHECKING:
    import torch

BUILD = (
    "in a checkout of NVIDIA/apex, with the CUDA toolkit of torch's version: "
    "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 APEX_XENTROPY=1 pip install --no-build-isolation ."
)
Status = Literal["absent", "unrelated", "not compiled", "compiled"]


def status() -> Status:
    """What the module named `apex` is: NVIDIA's with or without compiled extensions, another package, or absent."""
    if importlib.util.find_spec("apex") is None:
        return "absent"
    if not any((folder / "optimizers" / "fused_sgd.py").is_file() for folder in _folders()):
        return "unrelated"
    return "compiled" if importlib.util.find_spec("amp_C") else "not compiled"


def _folders() -> list[Path]:
    """Where the module named `apex` lies."""
    spec = importlib.util.find_spec("apex")
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or []]


def has_xentropy() -> bool:
    """Whether apex's fused cross entropy is built, for which apex has a separate build option."""
    inside = any(any(folder.glob("contrib/xentropy/xentropy_cuda*.so")) for folder in _folders())
    return inside or importlib.util.find_spec("xentropy_cuda") is not None


MEANINGS: dict[Status, str] = {
    "absent": "NVIDIA's apex is not installed",
    "unrelated": "the installed package named apex is not NVIDIA's; uninstall it",
    "not compiled": "the installed apex is NVIDIA's without its compiled extensions (amp_C)",
}


def chosen(implementation: str, key: str, device: torch.device, built: bool = True) -> bool:
    """Whether apex is to be used where `key` is `implementation` ("auto", "torch" or "apex").

    Args:
        built: whether the extension that is needed was built.

    Raises:
        UserError: apex is asked for and is not there, not compiled, or there is no GPU.
    """
    if implementation == "torch":
        return False
    present = status()
    usable = present == "compiled" and built and device.type == "cuda"
    if implementation == "apex" and not usable:
        reason = MEANINGS.get(present) or ("apex was built without this extension" if not built else "apex needs a GPU")
        raise UserError(f"{key}=apex cannot be had: {reason}; set {key}=torch, or build it: {BUILD}")
    return usable


def has_the_steps(groups: list[dict[str, Any]], config: OptimizerConfig) -> bool:
    """Whether apex has the optimizer as configured; its LAMB scales the steps of decayed parameters, and no others.

    Raises:
        UserError: apex's LAMB is asked for, and other parameters than the weights are decayed, or none.
    """
    if config.name != "lamb":
        return config.name == "sgd"
    same = all(group["adapt"] == (group["weight_decay"] != 0) for group in groups)
    if config.implementation == "apex" and not same:
        raise UserError(
            "optimizer.implementation=apex: apex's LAMB scales the steps of decayed parameters, which must be the weights; set "
            "optimizer.weight_decay above 0 and optimizer.decay_biases_and_norms=false, or optimizer.implementation=torch"
        )
    return same


def optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """FusedSGD or FusedLAMB over groups of parameters, as `config.name` says; `chosen` comes first."""
    from apex.optimizers import FusedLAMB, FusedSGD

    if config.name == "sgd":
        return FusedSGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov)
    betas = (config.beta1, config.beta2)
    no_clipping = float("inf")  # clipping is the engine's; apex clips to 1 unless told otherwise
    return FusedLAMB(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, max_grad_norm=no_clipping)
