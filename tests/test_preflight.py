"""How a rank reads its arguments before anything else."""

from __future__ import annotations

import pytest
import torch

from vgg_ddp import preflight
from vgg_ddp.config import load
from vgg_ddp.distributed.devices import Devices
from vgg_ddp.distributed.world import World
from vgg_ddp.errors import UserError


@pytest.mark.parametrize("arguments", [[], ["--local_rank=0"]])
def test_a_rank_without_a_configuration_says_what_is_missing(arguments: list[str]) -> None:
    """As `torchrun -m vgg_ddp.train` starts it."""
    assert preflight.devices(arguments, load) == Devices()  # no error yet: all ranks raise it together
    with pytest.raises(UserError, match=r"^no CONFIG .* is given; add one after the module"):
        preflight.on_ranks(arguments, World(0, 1, 0, 1, torch.device("cpu")), preflight.check_training)
