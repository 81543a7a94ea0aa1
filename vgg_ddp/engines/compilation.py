"""torch.compile: of the whole network, stage by stage, or whichever of these and eager is the quickest here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vgg_ddp.distributed.world import World
from vgg_ddp.engines.trials import Trial, quickest
from vgg_ddp.errors import UserError
from vgg_ddp.model import VGG
from vgg_ddp.model.activation_checkpointing import stages

EAGER = "eager"
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
    return torch.compile(network, **options)


def compilations(network: VGG, device: torch.device, accumulation: int) -> dict[str, Callable[[], nn.Module]]:
    """By name, what builds each compiled form of a network, and eager. CUDA graphs are untested on a GPU.

    A CUDA graph writes each pass into the memory of the one before, so none is tried where gradients of several
    micro-batches are accumulated.
    """
    forms: dict[str, Callable[[], nn.Module]] = {
        EAGER: lambda: network,
        "whole": partial(_compiled, network),
        "stages": partial(CompiledStages, network),
    }
    if device.type == "cuda" and accumulation == 1:
        forms["whole, CUDA graphs"] = partial(_compiled, network, mode="reduce-overhead")
    return forms


def compiled(
    network: nn.Module,
    wanted: bool | Literal["stages", "graph", "auto"],
    accumulation: int,
    trial: Callable[[], Trial],
    world: World,
) -> tuple[nn.Module, dict[str, Any]]:
    """The network as the key `compile` asks for it (false: itself), and what was measured, by config key.

    With "auto" all ranks together, which choose the same.

    Raises:
        UserError: torch.compile cannot compile it here.
    """
    if wanted in (False, "graph"):  # the whole step is recorded, see `vgg_ddp.training.cuda_graph`
        return network, {}
    assert isinstance(network, VGG)
    forms = compilations(network, world.device, accumulation)
    if wanted == "auto":
        choice, seconds, problems = quickest(forms, trial(), network, world, may_fail=True)
        if seconds[choice] > (1 - WORTH_IT) * seconds[EAGER]:
            choice = EAGER
        return forms[choice](), {"compile": {"chosen": choice, "seconds": seconds, "problems": problems}}
    name = "stages" if wanted == "stages" else "whole"
    try:
        quickest({name: forms[name]}, trial(), network, world)
    except Exception as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"compile={str(wanted).lower()}: torch.compile fails here ({first}); set compile=false"
        ) from error
    return forms[name](), {}
