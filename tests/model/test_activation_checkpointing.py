"""Activation checkpointing changes no bit, updates running statistics once, and keeps less memory."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vgg_ddp.model import VGG, initialize, vgg
from vgg_ddp.model.activation_checkpointing import Checkpointing, stages
from vgg_ddp.model.layers import GlobalMaxPool2d


def network(configuration: str, batch_norm: bool, what: Checkpointing) -> VGG:
    built = vgg(configuration, batch_norm, "compact", 10, 32).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    initialize(built, "kaiming", 0)
    built.checkpointing = what
    return built


def step(built: VGG, dtype: torch.dtype) -> Tensor:
    """The loss of a forward and backward pass with autocast to `dtype`."""
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = nn.functional.cross_entropy(built(images), torch.arange(4))
    loss.backward()
    return loss.detach()


class Held(TorchDispatchMode):
    """Tracks the memory of all tensors that operations return, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[weakref.ref[Any], int]] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        result = operation(*arguments, **(named or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage.data_ptr()] = weakref.ref(storage), storage.nbytes()
        return result

    def bytes(self) -> int:
        return sum(size for reference, size in self.storages.values() if reference() is not None)


def bytes_an_image(what: Checkpointing) -> int:
    """What VGG-16 keeps for the backward pass per image; weights, which do not depend on the images, cancel out."""
    return bytes_held(what, 2) - bytes_held(what, 1)


def bytes_held(what: Checkpointing, count: int) -> int:
    built, images = network("D", True, what), torch.zeros(count, 3, 32, 32).to(memory_format=torch.channels_last)
    with Held() as held, torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        output = built(images)
        gc.collect()
        held_bytes = held.bytes()
    del output  # which has kept all of that alive
    return held_bytes


@pytest.mark.seconds
@pytest.mark.parametrize("what", ["normalisation", "stages"])
@pytest.mark.parametrize(
    ("configuration", "batch_norm", "dtype"),
    [
        ("A", True, torch.bfloat16),
        ("A", False, torch.float32),
        ("D", True, torch.float32),
        ("A-LRN", False, torch.float32),
    ],
)
def test_the_same_bits_and_statistics(
    configuration: str, batch_norm: bool, dtype: torch.dtype, what: Checkpointing
) -> None:
    plain, again = (network(configuration, batch_norm, kind) for kind in ("none", what))
    for _ in range(2):
        assert torch.equal(step(plain, dtype), step(again, dtype))
    for (name, ours), theirs in zip(again.named_parameters(), plain.parameters()):
        assert ours.grad is not None and theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad), name
    for (name, statistic), expected in zip(again.named_buffers(), plain.buffers()):
        assert torch.equal(statistic, expected), name
    if batch_norm:
        assert again.features[1].num_batches_tracked == 2


@pytest.mark.seconds
def test_it_keeps_less() -> None:
    """Outputs of convolutions and normalisations, and what pools need; half of it; the stages' inputs but for the pixels."""
    outputs = 2 * (
        2 * 64 * 32**2 + 2 * 128 * 16**2 + 3 * 256 * 8**2 + 3 * 512 * 4**2 + 3 * 512 * 2**2
    )  # of convolutions
    inputs = 2 * (64 * 16**2 + 128 * 8**2 + 256 * 4**2 + 512 * 2**2)
    whole, normalisation, whole_stages = (bytes_an_image(what) for what in ("none", "normalisation", "stages"))
    assert whole > 2 * outputs
    assert outputs < normalisation < 1.3 * (outputs + inputs)
    assert inputs < whole_stages < 1.5 * inputs


@pytest.mark.seconds
def test_a_stage_ends_with_its_pool() -> None:
    for configuration in ("A", "A-LRN", "C", "E"):
        parts = stages(network(configuration, configuration != "A-LRN", "none").features)
        assert len(parts) == 5
        assert all(isinstance(part[0], nn.Conv2d) for part in parts)
        assert all(any(isinstance(module, nn.MaxPool2d | GlobalMaxPool2d) for module in part) for part in parts)


def test_evaluation_keeps_nothing_and_runs_once() -> None:
    built = network("A", True, "stages").eval()
    with torch.no_grad():
        built(torch.zeros(2, 3, 32, 32))
    assert built.features[1].num_batches_tracked == 0
