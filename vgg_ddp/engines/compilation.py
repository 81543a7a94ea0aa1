"""torch.compile: of the whole network, stage by stage, or whichever of these, eager and a CUDA graph is the quickest here.

The backward pass of a network compiled on its own is one operation, which yields all gradients at its end. Compiled
inside DDP's forward pass, it is split where DDP's buckets end (`torch._dynamo.config.optimize_ddp`), so that they are
sent while it runs. The code compiled in the first call is kept, so that call must be made inside DDP, whichever of the
two wraps the other.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vgg_ddp.config import Config
from vgg_ddp.distributed.world import World
from vgg_ddp.engines.trials import Trial, quickest
from vgg_ddp.errors import UserError
from vgg_ddp.model import VGG
from vgg_ddp.model.activation_checkpointing import stages
from vgg_ddp.optim import nvidia_apex

EAGER, GRAPH = "eager", "graph"
Around = Callable[[nn.Module], nn.Module]  # what reduces the gradients of a network, in trials
WORTH_IT = 0.02  # of eager's time: a smaller gain may be noise


class CompiledStages(nn.Module):
    """A VGG whose stages are compiled each by itself: less to compile, and the calls between them stay eager."""

    def __init__(self, network: VGG) -> None:
        super().__init__()
        self.network = network
        # A plain list: their parameters are the network's.
        self._stages = [_compiled(stage) for stage in stages(network.features)]

    def forward(self, images: Tensor) -> Tensor:
        """As `VGG.forward`."""
        for stage in self._stages:
            images = stage(images)
        return self.network.classifier(images.flatten(1))


def _compiled(network: nn.Module, **options: Any) -> Any:
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses CUDA where it builds for the CPU
    # Each size of images by itself: code for any size, once a second one is met, would depend on what a process has met before.
    return torch.compile(network, dynamic=False, **options)


def unrecordable(config: Config, world: World) -> str:
    """The first key that keeps a configuration's step from being recorded as a CUDA graph; "" if none does."""
    optimizer = config.optimizer
    apex = optimizer.implementation == "auto" and optimizer.name == "sgd" and nvidia_apex.status() == "compiled"
    keys = {
        "engine=deepspeed": config.engine == "deepspeed",
        "communication.synchronise_every": config.communication.synchronise_every > 1,
        "communication.compression=powersgd": config.communication.compression == "powersgd",
        "communication.split_head": config.communication.split_head != "none",
        "ranks_per_gpu": config.ranks_per_gpu > 1 and world.size > 1,  # gloo's messages go through the host
        "loss.on_nonfinite=skip": config.loss.on_nonfinite == "skip",  # waits for the device
        "optimizer.name=lamb": optimizer.name == "lamb",
        f"optimizer.name={optimizer.name} in fp16": optimizer.name in ("lars", "muon")
        and config.precision == "fp16",  # asks for overflows
        "apex's optimizers, which optimizer.implementation=torch leaves out": apex
        or optimizer.implementation == "apex",
        "augment.mixup and cutmix": bool(config.augment.mixup or config.augment.cutmix),
    }
    return next((name for name, present in keys.items() if present), "")


def compilations(config: Config, network: VGG, world: World) -> dict[str, Callable[[], nn.Module]]:
    """By name, what builds each form of the network that `compile=auto` tries.

    The compiler's CUDA graphs, untested on a GPU, write each pass into the memory of the one before, so they are not tried
    where gradients of several micro-batches are accumulated.
    """
    forms: dict[str, Callable[[], nn.Module]] = {
        EAGER: lambda: network,
        "whole": partial(_compiled, network),
        "stages": partial(CompiledStages, network),
    }
    if world.device.type == "cuda" and config.accumulation == 1:
        forms["whole, CUDA graphs"] = partial(_compiled, network, mode="reduce-overhead")
    if world.device.type == "cuda" and not unrecordable(config, world):
        forms[GRAPH] = forms[EAGER]
    return forms


def compiled(
    config: Config, network: nn.Module, around: Around, trial: Callable[[], Trial], world: World
) -> tuple[nn.Module, str, dict[str, Any]]:
    """The network as the key `compile` asks for it, all ranks together.

    Args:
        around: wraps the network as in training (e.g. in DDP), so that it is compiled and measured inside the wrapper.

    Returns:
        The network in this form, to be called in `around`; the form's name ("graph": the network itself, in a step that is
        recorded, see `vgg_ddp.training.cuda_graph`); and what was measured, by config key.

    Raises:
        UserError: torch.compile cannot compile it here.
    """
    if config.compile in (False, GRAPH):
        return network, GRAPH if config.compile else EAGER, {}
    assert isinstance(network, VGG)
    forms = compilations(config, network, world)
    if config.compile != "auto":
        forms = {name: forms[name] for name in ["stages" if config.compile == "stages" else "whole"]}
    tried = {name: partial(_enclosed, form, around, name, world) for name, form in forms.items()}
    choice, seconds, problems = quickest(tried, trial(), network, world, forms.keys() - {EAGER}, recorded=[GRAPH])
    if config.compile == "auto":
        if seconds[choice] > (1 - WORTH_IT) * seconds[EAGER]:
            choice = EAGER
        known = {name: None if math.isinf(value) else value for name, value in seconds.items()}  # JSON has no infinity
        return forms[choice](), choice, {"compile": {"chosen": choice, "seconds": known, "problems": problems}}
    if problems:
        raise UserError(
            f"compile={str(config.compile).lower()}: torch.compile fails here ({problems[choice]}); set compile=false"
        )
    return forms[choice](), choice, {}


def _enclosed(form: Callable[[], nn.Module], around: Around, name: str, world: World) -> nn.Module:
    with stream_for(name, world.device):
        return around(form())


def stream_for(name: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context to build DDP in: DDP keeps the CUDA stream that it is built on, and graphs refuse the default stream."""
    return torch.cuda.stream(torch.cuda.Stream(device)) if name == GRAPH else nullcontext()
