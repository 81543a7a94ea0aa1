"""The fused layer against torch's two or three layers, by Triton's interpreter on the CPU; and where it is used."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from tests.support.rank_processes import apart
from vgg_ddp.config import Config
from vgg_ddp.model import fusion, vgg
from vgg_ddp.model.fully_convolutional import FullyConvolutional

# Relative to the largest value. Triton's interpreter truncates bf16 where a GPU rounds.
TOLERANCES = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-7}
SHAPES = [(3, 64, 4, 6), (2, 70, 10, 8), (2, 8, 5, 4)]  # with partial blocks, and an odd side


def distances(dtype: torch.dtype, shape: tuple[int, ...], pool: int, frozen: bool, device: str) -> list[float]:
    """How far outputs, gradients and statistics are from torch's, relative to the largest value.

    Args:
        frozen: the scales and whatever precedes the layer get no gradients.
    """
    from vgg_ddp.model import fused_norm

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(-3, 4, shape, generator=generator).float()  # many equal values: ties
    if dtype != torch.bfloat16:  # whose truncation would create other ties
        pixels[0] = torch.randn(shape[1:], generator=generator)
    upstream = torch.randn(shape[0], shape[1], shape[2] // pool, shape[3] // pool, generator=generator).to(
        device, dtype
    )
    norm = nn.BatchNorm2d(shape[1])
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 1.5, shape[1]) * (1 - 2 * (torch.arange(shape[1]) % 2)))
        norm.bias.copy_(torch.linspace(0.5, -0.5, shape[1]))
    fused = fused_norm.FusedNorm2d(shape[1], norm.eps, norm.momentum, pool)
    fused.load_state_dict(norm.state_dict())
    sides: list[list[Any]] = []
    for layer in (fused, nn.Sequential(norm, nn.MaxPool2d(pool), nn.ReLU())):
        layer.to(device)
        next(layer.parameters()).requires_grad_(not frozen)
        images = pixels.to(device, dtype, memory_format=torch.channels_last).requires_grad_(not frozen)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fused_norm, "SMALLEST", 0)
            outputs = layer(images)
            outputs.backward(upstream)
        gradients = [tensor.grad for tensor in (images, *layer.parameters())]
        assert [gradient is None for gradient in gradients] == [frozen, frozen, False]
        assert outputs.dtype == dtype and (frozen or gradients[0].dtype == dtype)  # type: ignore[union-attr]
        assert outputs.is_contiguous(memory_format=torch.channels_last)
        sides.append(
            [outputs.detach(), *(gradient for gradient in gradients if gradient is not None), *layer.buffers()]
        )
    pairs = [(ours.double(), theirs.double()) for ours, theirs in zip(*sides, strict=True)]
    return [((ours - theirs).abs().max() / theirs.abs().max()).item() for ours, theirs in pairs]


def interpreted() -> dict[tuple[torch.dtype, tuple[int, ...], int, bool], list[float]]:
    os.environ["TRITON_INTERPRET"] = "1"
    cases = [*itertools.product(TOLERANCES, SHAPES, (1, 2), [False]), (torch.float32, SHAPES[0], 2, True)]
    return {case: distances(*case, device="cpu") for case in cases}


@pytest.mark.processes
def test_is_torch_s_layers_to_rounding_ties_included() -> None:
    found = apart(interpreted, warm=False)  # Triton reads the variable when it is imported
    assert {key: values for key, values in found.items() if max(values) > TOLERANCES[key[0]]} == {}


@pytest.mark.seconds
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("kernel", ["_moments", "_statistics", "_outputs", "_sums", "_slopes", "_image_gradients"])
def test_the_kernels_compile_for_gpus(kernel: str, pool: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To machine code for an A100, which needs no GPU."""
    triton = pytest.importorskip("triton")
    from vgg_ddp.model import fused_norm

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(fused_norm, kernel)
    images, numbers = {"images", "gradients", "found", "outputs"}, {"epsilon", "momentum"}
    sizes = {"programs", "pixels", "height", "width", "channels"}
    kinds = dict.fromkeys(images, "*bf16") | dict.fromkeys(sizes, "i32") | dict.fromkeys(numbers, "fp32")
    signature = {p.name: "constexpr" if p.is_constexpr else kinds.get(p.name, "*fp32") for p in function.params}
    blocks = {name: getattr(fused_norm, name, pool) for name, kind in signature.items() if kind == "constexpr"}
    source = triton.compiler.ASTSource(fn=function, signature=signature, constexprs=blocks)
    a100 = triton.backends.compiler.GPUTarget("cuda", 80, 32)
    assert "cubin" in triton.compile(source, target=a100).asm


@pytest.mark.parametrize(
    ("keys", "device", "count", "pools"),
    [
        ({}, "cuda", 7, 4),  # the fifth pool is the head's
        ({"compile": "graph", "model": {"head": "paper"}, "data": {"image_size": 32}}, "cuda", 8, 5),
        ({"model": {"activation": "gelu"}}, "cuda", 0, 0),
        ({"model": {"pool_before_norm": True}}, "cuda", 8, 0),
        ({}, "cpu", 0, 0),
        ({"compile": "auto"}, "cuda", 0, 0),
        ({"recompute": "stages"}, "cuda", 0, 0),
        ({"channels_last": False}, "cuda", 0, 0),
        ({"model": {"fused": False}}, "cuda", 0, 0),
        ({"model": {"sync_batch_norm": True}}, "cuda", 0, 0),
        ({"model": {"batch_norm": False}}, "cuda", 0, 0),
    ],
    ids=str,
)
def test_a_network_has_it_on_a_gpu_without_a_compiler(
    keys: dict[str, Any], device: str, count: int, pools: int
) -> None:
    pytest.importorskip("triton")
    config = msgspec.convert(keys, Config)
    model = config.model
    network = vgg("A", model.batch_norm, model.head, 10, 32, **model.variant)
    names = list(network.state_dict())
    fusion.fuse(network.features, config, torch.device(device))
    kinds = [type(layer).__name__ for layer in network.features]
    assert kinds.count("FusedNorm2d") == count and kinds.count("Identity") == count + pools
    assert list(network.state_dict()) == names
    side = FullyConvolutional(network, 32)._window
    assert side == FullyConvolutional(vgg("A", model.batch_norm, model.head, 10, 32, **model.variant), 32)._window == 2


def test_where_triton_has_no_compiler_the_layers_are_torch_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    network = vgg("A", True, "compact", 10, 32)
    kinds = [type(layer) for layer in network.features]
    fusion.fuse(network.features, Config(), torch.device("cuda"))
    assert [type(layer) for layer in network.features] == kinds


def test_images_of_float64_stay_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    fused_norm = pytest.importorskip("vgg_ddp.model.fused_norm")
    monkeypatch.setattr(fused_norm, "SMALLEST", 0)
    images = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    layer = fused_norm.FusedNorm2d(8, 1e-5, 0.1, 2).double()
    assert torch.equal(layer(images), nn.functional.max_pool2d(nn.BatchNorm2d(8).double()(images), 2).relu())
