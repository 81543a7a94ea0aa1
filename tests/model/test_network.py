"""The networks against the paper's tables, torchvision's networks, and the formulas they cite."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn

from vgg_ddp.model import VGG, initialize, vgg
from vgg_ddp.model.convolution import Convolution, CpuConvolution
from vgg_ddp.model.layers import GlobalMaxPool2d
from vgg_ddp.model.network import CONFIGURATIONS

TORCHVISION = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}
EACH_OF_TORCHVISION = pytest.mark.parametrize("name", [name + bn for name in TORCHVISION for bn in ("", "_bn")])


def on_meta(*arguments: object, **settings: object) -> VGG:
    """A network on the meta device, without memory."""
    with torch.device("meta"):
        return vgg(*arguments, **settings)  # type: ignore[arg-type]


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def torchvision_on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, init_weights=False)


def ours_on_meta(torchvision_name: str) -> VGG:
    name, _, batch_norm = torchvision_name.partition("_")
    return on_meta(TORCHVISION[name], batch_norm=bool(batch_norm))


@pytest.fixture(scope="module")
def classifier() -> dict[str, Tensor]:
    """One set of random weights for the three linear layers, whose shapes all eight torchvision networks share."""
    shapes = {n: t.shape for n, t in torchvision_on_meta("vgg11").state_dict().items() if n.startswith("classifier.")}
    return random_weights(shapes, seed=0)


def random_weights(shapes: dict[str, torch.Size], seed: int) -> dict[str, Tensor]:
    """Values that keep the activations' size from layer to layer; statistics of batch norms are positive."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(7)
        elif len(shape) > 1:
            weights[name] = torch.randn(shape, generator=generator).mul_(math.sqrt(2 / math.prod(shape[1:])))
        else:
            weights[name] = torch.rand(shape, generator=generator) + (0.5 if "running_var" in name else 0.0)
    return weights


@pytest.mark.parametrize(
    ("configuration", "millions"), [("A", 133), ("A-LRN", 133), ("B", 133), ("C", 134), ("D", 138), ("E", 144)]
)
def test_parameters_are_as_many_as_in_table_2_of_the_paper(configuration: str, millions: int) -> None:
    assert round(count(on_meta(configuration)) / 1e6) == millions


@EACH_OF_TORCHVISION
def test_parameters_are_as_many_as_in_torchvision(name: str) -> None:
    published = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].meta["num_params"]
    ours = {n: t.shape for n, t in ours_on_meta(name).state_dict().items()}
    assert ours == {n: t.shape for n, t in torchvision_on_meta(name).state_dict().items()}
    if "_bn" not in name:  # before a batch norm, biases are zeros that are not trained
        assert count(ours_on_meta(name)) == published


@pytest.mark.parametrize("usual", TORCHVISION)
def test_usual_name_is_the_same_network_as_the_paper_s_letter(usual: str) -> None:
    named, lettered = on_meta(usual, batch_norm=True), on_meta(TORCHVISION[usual], batch_norm=True)
    assert [repr(module) for module in named.modules()] == [repr(module) for module in lettered.modules()]


@pytest.mark.seconds
@EACH_OF_TORCHVISION
@torch.no_grad()
def test_torchvision_state_dict_gives_the_same_bits(name: str, classifier: dict[str, Tensor]) -> None:
    theirs, ours = torchvision_on_meta(name).eval(), ours_on_meta(name).eval()
    shapes = {n: t.shape for n, t in theirs.state_dict().items() if n.startswith("features.")}
    weights = {**random_weights(shapes, seed=1), **classifier}
    theirs.load_state_dict(weights, strict=True, assign=True)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    expected = theirs(images)
    assert expected.std() > 0.1  # the signal has not vanished
    assert torch.equal(ours(images), expected)


def test_names_of_the_compact_head_are_torchvision_s_too() -> None:
    names = on_meta("A", True, "compact", 10, 32).state_dict().keys()
    theirs = torchvision_on_meta("vgg11_bn").state_dict().keys()
    assert {n for n in names if n.startswith("features.")} == {n for n in theirs if n.startswith("features.")}
    assert {n for n in names if n.startswith("classifier.")} == {"classifier.0.weight", "classifier.0.bias"}


@pytest.mark.seconds
@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn", "vgg16"])
def test_pool_before_relu_has_the_values_and_gradients_of_relu_before_pool(name: str) -> None:
    """torchvision rectifies first, as the paper does; in training mode, float64."""
    theirs, ours = torchvision_on_meta(name).features, ours_on_meta(name).features
    weights = random_weights({n: t.shape for n, t in theirs.state_dict().items()}, seed=3)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    found = []
    for network in (theirs, ours):
        network.load_state_dict({n: t.clone() for n, t in weights.items()}, strict=True, assign=True)
        network.double()
        output = network(images)
        (output**2).sum().backward()
        found.append((output, {name: parameter.grad for name, parameter in network.named_parameters()}))
    (expected, expected_gradients), (output, gradients) = found
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    assert expected.any()
    unused = {f"{n}.bias" for n, layer in theirs.named_children() if isinstance(layer, nn.Conv2d) and "_bn" in name}
    assert set(gradients) == set(expected_gradients) - unused  # a batch norm cancels those biases
    for key, gradient in gradients.items():
        largest = expected_gradients[key].abs().max()
        torch.testing.assert_close(gradient, expected_gradients[key], rtol=1e-12, atol=1e-12 * largest)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (4, 4), (4, 3), (5, 4)])
@pytest.mark.parametrize("channels", [(6, 8), (256, 264)])
@pytest.mark.parametrize("kind", [Convolution, CpuConvolution])
def test_convolution_is_conv2d(
    kind: type[Convolution], channels: tuple[int, int], kernel: int, size: tuple[int, int], layout: torch.memory_format
) -> None:
    """On few pixels it skips the taps that only meet padding: at one pixel their gradient must be zero."""
    generator = torch.Generator().manual_seed(0)
    ours = kind(*channels, kernel).double().to(memory_format=layout)
    theirs = nn.Conv2d(*channels, kernel, padding=kernel // 2).double()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(4, channels[0], *size, dtype=torch.float64, generator=generator).to(memory_format=layout)
    target = torch.randn(4, channels[1], *size, dtype=torch.float64, generator=generator)
    found = []
    for layer in (ours, theirs):
        inputs = images.clone().requires_grad_()
        output = layer(inputs)
        (output * target).sum().backward()
        found.append((output.detach(), inputs.grad, layer.weight.grad, layer.bias.grad))
    for got, expected in zip(*found):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_convolution_under_autocast_keeps_the_precision_of_its_parameters_gradients(size: int) -> None:
    layer = CpuConvolution(256, 256, 3).to(memory_format=torch.channels_last)
    images = torch.randn(4, 256, size, size).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(images)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    gradient = layer.weight.grad
    assert gradient is not None
    assert gradient.dtype == torch.float32
    exact = copy.deepcopy(layer).double()
    exact.zero_grad()
    exact(images.double()).square().sum().backward()
    assert exact.weight.grad is not None
    assert (gradient - exact.weight.grad).norm() < 0.02 * exact.weight.grad.norm()


@pytest.mark.parametrize(("size", "inputs"), [(32, 512), (64, 2048), (224, 25088)])
def test_paper_head_is_built_for_its_image_size(size: int, inputs: int) -> None:
    network = on_meta("A", num_classes=7, image_size=size)
    widths = [(m.in_features, m.out_features) for m in network.classifier if isinstance(m, nn.Linear)]
    assert widths == [(inputs, 4096), (4096, 4096), (4096, 7)]
    assert network(torch.empty(2, 3, size, size, device="meta")).shape == (2, 7)


def test_dropout_is_in_the_paper_s_head_alone() -> None:
    paper = [m.p for m in on_meta("A", dropout=0.3, image_size=32).modules() if isinstance(m, nn.Dropout)]
    compact = [m for m in on_meta("A", head="compact", image_size=32).modules() if isinstance(m, nn.Dropout)]
    assert paper == [0.3, 0.3]
    assert not compact


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("size", [16, 17, 24, 32, 48, 64])
def test_compact_head_takes_any_size_from_16_up(configuration: str, size: int) -> None:
    network = on_meta(configuration, head="compact", num_classes=7, image_size=size)
    assert network(torch.empty(2, 3, size, size, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("batch_norm", [False, True])
@torch.no_grad()
def test_compact_features_are_the_paper_s_at_32_pixels_and_their_maximum_at_64(batch_norm: bool) -> None:
    """The global pool takes the place of the fifth pool, before the last ReLU."""
    paper = torchvision_on_meta("vgg11_bn" if batch_norm else "vgg11").features
    compact = on_meta("A", batch_norm, "compact", 10, 32).features
    weights = random_weights({n: t.shape for n, t in paper.state_dict().items()}, seed=5)
    for network in (paper, compact):
        network.load_state_dict(weights, strict=True, assign=True)
        network.eval()
    for size in (32, 64):
        images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(6))
        expected = paper(images).amax(dim=(2, 3))
        assert expected.any()
        torch.testing.assert_close(compact(images).flatten(1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"configuration": "F"}, ["'F'", "A, A-LRN, B, C, D, E"]),
        ({"configuration": "vgg12"}, ["'vgg12'"]),
        ({"head": "wide"}, ["'wide'", "paper, compact"]),
        ({"head": "paper", "image_size": 31}, ["paper", "32", "31"]),
        ({"head": "compact", "image_size": 15}, ["compact", "16", "15"]),
    ],
)
def test_what_cannot_be_built_is_refused(settings: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        on_meta(**settings)
    assert all(word in str(caught.value) for word in words)


def expected_std(method: str, weight: Tensor) -> float:
    """Standard deviation of the initial weights, from the papers."""
    taps = math.prod(weight.shape[2:])
    fan_in, fan_out = weight.shape[1] * taps, weight.shape[0] * taps
    if method == "paper":  # "sampled the weights from a normal distribution with the zero mean and 10^-2 variance"
        return 0.1
    if method == "glorot":  # eq. 16: uniform within +-sqrt(6 / (n_j + n_j+1)), so variance 2 / (n_j + n_j+1)
        return math.sqrt(2 / (fan_in + fan_out))
    return math.sqrt(2 / fan_out) if weight.ndim == 4 else 0.01  # He et al., eq. 14: n^_l Var[w] / 2 = 1


@pytest.mark.parametrize("method", ["kaiming", "glorot", "paper"])
@torch.no_grad()
def test_initial_weights_have_the_mean_and_spread_of_their_formula(method: str) -> None:
    network = vgg("A", True, "compact", 100, 32)
    for parameter in network.parameters():
        parameter.fill_(math.nan)  # exposes whatever is not initialised
    initialize(network, method, seed=0)  # type: ignore[arg-type]
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            std, n = expected_std(method, module.weight), module.weight.numel()
            assert abs(module.weight.mean()) < 5 * std / math.sqrt(n)
            assert module.weight.std() == pytest.approx(std, rel=5 / math.sqrt(2 * n))
            if method == "glorot":
                assert module.weight.abs().max() <= std * math.sqrt(3) * (1 + 1e-6)
            else:
                kurtosis = ((module.weight / std) ** 4).mean()
                assert kurtosis == pytest.approx(3.0, abs=5 * math.sqrt(96 / n))  # a normal's
            assert not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()


def test_initial_weights_follow_from_the_seed_alone() -> None:
    drawn = []
    for seed, unrelated in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(unrelated)
        network = vgg("A", True, "compact", 10, 32)
        initialize(network, "kaiming", seed)
        drawn.append(network.state_dict())
    first, same, other = drawn
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].ndim > 1)


def test_local_response_normalisation_is_that_of_krizhevsky_2012() -> None:
    """Section 3.3: b_i = a_i / (k + alpha * sum over j = max(0, i - n/2) .. min(N - 1, i + n/2) of a_j^2)^beta."""
    k, n, alpha, beta = 2, 5, 1e-4, 0.75
    (layer,) = [module for module in on_meta("A-LRN").modules() if isinstance(module, nn.LocalResponseNorm)]
    a = 200 * torch.rand(2, 64, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    b = torch.empty_like(a)
    for i in range(64):
        neighbours = a[:, max(0, i - n // 2) : min(63, i + n // 2) + 1]
        b[:, i] = a[:, i] / (k + alpha * (neighbours**2).sum(dim=1)) ** beta
    torch.testing.assert_close(layer(a), b, rtol=1e-12, atol=0)


def test_local_response_normalisation_is_in_a_lrn_alone() -> None:
    for configuration in CONFIGURATIONS:
        found = sum(isinstance(module, nn.LocalResponseNorm) for module in on_meta(configuration).modules())
        assert found == (configuration == "A-LRN")


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_global_pool_is_torch_s_adaptive_pool_ties_included(size: tuple[int, int], dtype: torch.dtype) -> None:
    images = torch.randint(0, 4, (3, 8, *size), generator=torch.Generator().manual_seed(0)).to(dtype)
    found = []
    for pool in (GlobalMaxPool2d(), nn.AdaptiveMaxPool2d(1)):
        inputs = images.clone().requires_grad_()
        output = pool(inputs)
        output.sum().backward()
        found.append((output, inputs.grad))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


@pytest.mark.parametrize("convolution", [Convolution, CpuConvolution])
def test_torch_fx_traces_a_network_for_any_size(convolution: type[Convolution]) -> None:
    network = vgg("C", batch_norm=True, head="compact", num_classes=3, convolution=convolution).eval()
    traced = fx.symbolic_trace(network)
    for size in (16, 32, 80):
        images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(size))
        assert torch.equal(traced(images), network(images))


@pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")
def test_torch_jit_script_is_told_what_to_use() -> None:
    with pytest.raises(NotImplementedError, match=r"use torch\.export"):
        torch.jit.script(vgg("A", head="compact"))
