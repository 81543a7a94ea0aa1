"""torch.compile: the same network, chosen only where it is quicker, and skipped where it is unavailable."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn

from tests.support.rank_processes import CPU, Ranks
from vgg_ddp import engines
from vgg_ddp.config import Config
from vgg_ddp.config.communication import CommunicationConfig
from vgg_ddp.config.data import DataConfig
from vgg_ddp.distributed.world import ALONE, World, joined
from vgg_ddp.engines import compilation
from vgg_ddp.engines.compilation import EAGER, GRAPH, compilations
from vgg_ddp.engines.trials import quickest
from vgg_ddp.errors import UserError
from vgg_ddp.model import VGG, initialize, vgg
from vgg_ddp.model.network import CONFIGURATIONS
from vgg_ddp.training import cuda_graph

pytestmark = pytest.mark.processes

SMALL = Config(network="vgg11", batch=4, precision="fp32", data=DataConfig(image_size=16))


def small_network(*widths: int) -> VGG:
    """A VGG with one convolution of the given width in each stage, which is quick to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGURATIONS, "A", [entry for width in (*widths, 512) for entry in (width, "M")])
        network = vgg("A", True, "compact", 10, 16)
    initialize(network, "kaiming", 0)
    return network


def losses(network: nn.Module, train: nn.Module) -> list[float]:
    """The losses of three steps through `train` on the parameters of `network`."""
    generator = torch.Generator().manual_seed(0)
    optimizer, found = torch.optim.SGD(network.parameters(), lr=0.05), []
    for _ in range(3):
        images, labels = torch.randn(4, 3, 16, 16, generator=generator), torch.tensor([1, 2, 3, 4])
        loss = nn.functional.cross_entropy(train(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.fixture(autouse=True)
def without_a_pool_of_compiling_processes() -> Iterator[None]:
    """Compile in this process, since each process of a pool would first import torch."""
    from torch._inductor import config as inductor

    with inductor.patch(compile_threads=1):
        yield


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # the compiler looks at a stage's input
@pytest.mark.parametrize(("name", "widths"), [("whole", ()), ("stages", (8,))])
def test_compiled_has_the_losses_statistics_and_names_of_eager(
    name: str, widths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "whole" and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        pytest.skip("no C++ compiler, with which torch compiles for a CPU")
    torch.compiler.reset()
    if name == "stages":  # the graphs are cut the same way for every compiler
        monkeypatch.setattr(compilation, "_compiled", partial(torch.compile, backend="aot_eager"))
    eager, network = small_network(*widths), small_network(*widths)
    form = compilations(SMALL, network, ALONE)[name]()
    assert losses(network, form) == pytest.approx(losses(eager, eager), rel=2e-3)
    assert list(network.state_dict()) == list(eager.state_dict())
    assert network.features[1].num_batches_tracked == 3
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())
    torch.testing.assert_close(network.features[1].running_mean, eager.features[1].running_mean, rtol=0.01, atol=1e-3)


class Slow(nn.Module):
    def __init__(self, network: nn.Module, seconds: float) -> None:
        super().__init__()
        self.network, self.seconds = network, seconds

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return self.network(images)


def fails() -> nn.Module:
    raise RuntimeError("no compiler\nfound")


def test_the_quickest_is_chosen_and_trials_leave_no_trace() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def trial(candidate: nn.Module) -> None:
        candidate(torch.randn(8, 4)).sum().backward()
        candidate.zero_grad(set_to_none=True)

    waits: dict[str, Callable[[], nn.Module]] = {
        name: lambda wait=wait: Slow(network, wait) for name, wait in (("eager", 0.1), ("a", 0.0), ("b", 0.2))
    }
    choice, seconds, problems = quickest({**waits, "c": fails}, trial, network, ALONE, may_fail=["c"])
    assert (choice, problems) == ("a", {"c": "no compiler"})
    assert seconds["a"] < seconds["eager"] < seconds["b"] < seconds["c"] == float("inf")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    with pytest.raises(RuntimeError, match="no compiler"):
        quickest({**waits, "d": fails}, trial, network, ALONE, may_fail=["c"])


def test_without_a_compiler_auto_is_eager_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config as inductor

    torch.compiler.reset()
    monkeypatch.setattr(inductor.cpp, "cxx", (str(tmp_path / "no-compiler"),))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    engine = engines.build(msgspec.structs.replace(SMALL, compile="auto"), small_network(), ALONE)
    found = engine.measured["compile"]
    assert found["chosen"] == EAGER
    assert set(found["problems"]) == {"whole", "stages"}
    assert json.loads(json.dumps(found, allow_nan=False))["seconds"].keys() == {EAGER, "whole", "stages"}
    loss, logits = engine.forward(torch.randn(4, 3, 16, 16), torch.tensor([1, 2, 3, 4]), last=True)
    assert logits.shape == (4, 10)
    engine.backward(loss)
    with pytest.raises(UserError, match=r"compile=true: torch.compile fails here .*; set compile=false"):
        engines.build(msgspec.structs.replace(SMALL, compile=True), small_network(), ALONE)


def choose_and_step(output: Path) -> int:
    """As a rank: let `compile=auto` choose under local SGD, and take two steps under DDP, compiled and eager."""
    from torch._dynamo.backends.debugging import aot_eager  # already imported where ranks are forked

    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(len(inputs))
        return aot_eager(graph, inputs) if world_has_ddp else graph

    compilation._compiled = partial(torch.compile, backend=backend)  # type: ignore[assignment]
    config = msgspec.structs.replace(SMALL, batch=24, accumulation=2, compile="auto")
    local_sgd, found, world_has_ddp = CommunicationConfig(synchronise_every=8), {}, False
    with joined(devices=CPU) as world:
        world.use_threads(1)
        network, sizes = small_network(8), set[int]()
        network.classifier.register_forward_pre_hook(lambda module, inputs: sizes.add(len(inputs[0])))
        alone = engines.build(msgspec.structs.replace(config, communication=local_sgd), network, world)
        found |= {"local SGD": alone.measured["compile"], "sizes": sorted(sizes), "alone": len(graphs)}
        world_has_ddp = True
        generator = torch.Generator().manual_seed(world.rank)
        images = torch.randn(2, 6, 3, 16, 16, generator=generator).flatten(0, 1).to(memory_format=torch.channels_last)
        for compile in (True, False):
            graphs.clear()
            settings = msgspec.structs.replace(
                config, compile=compile, communication=CommunicationConfig(bucket_mb=1.0)
            )
            network, losses = small_network(8, 256), []
            engine = engines.build(settings, network, world)
            for _ in range(2):
                for last, micro in enumerate(images.chunk(2)):
                    loss, _ = engine.forward(micro, torch.arange(6), bool(last))
                    engine.backward(loss)
                    losses.append(loss.item())
                engine.step()
            weights = [value.double().sum().item() for value in network.state_dict().values()]
            found[str(compile)] = {
                "graphs": len(graphs),
                "losses": losses,
                "weights": weights,
                "names": [*engine.weights()],
            }
    (output / str(world.rank)).write_text(json.dumps(found))
    return 0


@pytest.fixture(scope="module")
def of_two_ranks(runs: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    output = runs / "two"
    output.mkdir()
    ranks = Ranks(choose_and_step, (output,), 2, runs / "output")
    assert ranks.wait() == [0, 0], ranks.stderr
    first, second = (json.loads((output / rank).read_text()) for rank in "01")
    return first, second


def test_ranks_of_local_sgd_choose_together_by_trials_of_their_own_micro_batch(of_two_ranks: Any) -> None:
    """24 images are two micro-batches of 6 on each of two ranks. Both have the same mean seconds, bit for bit."""
    first, second = of_two_ranks
    assert second["local SGD"] == first["local SGD"]
    assert first["local SGD"]["seconds"].keys() == {EAGER, "whole", "stages"}
    assert first["sizes"] == second["sizes"] == [6]


def test_compiled_inside_ddp_gradients_come_bucket_by_bucket(of_two_ranks: Any) -> None:
    """DDP gets graphs that are cut where its buckets end, those of the trials; the steps are those of eager."""
    assert of_two_ranks[0]["alone"] == 1 + 2  # whole, and two stages
    for found in of_two_ranks:
        compiled, eager = found["True"], found["False"]
        assert (compiled["graphs"], eager["graphs"]) == (2, 0)
        assert compiled["losses"] == pytest.approx(eager["losses"], rel=1e-4)
        assert compiled["weights"] == pytest.approx(eager["weights"], rel=1e-3, abs=1e-3)
        assert compiled["names"] == eager["names"]


FORMS = {EAGER, "whole", "stages"}


@pytest.mark.parametrize(
    ("keys", "size", "more"),
    [
        ({}, 1, {"whole, CUDA graphs", GRAPH}),
        ({"accumulation": 2}, 1, {GRAPH}),  # each replay of the compiler's graphs overwrites the results of the last
        ({"precision": "fp16"}, 8, {"whole, CUDA graphs", GRAPH}),
        ({"precision": "fp16", "optimizer": {"name": "lars"}}, 1, {"whole, CUDA graphs"}),
        ({"precision": "fp16", "optimizer": {"name": "muon"}}, 1, {"whole, CUDA graphs"}),
        ({"loss": {"on_nonfinite": "skip"}}, 1, {"whole, CUDA graphs"}),
        ({"optimizer": {"name": "muon"}}, 1, {"whole, CUDA graphs", GRAPH}),
        ({"optimizer": {"name": "lamb"}}, 1, {"whole, CUDA graphs"}),
        ({"augment": {"mixup": 0.2}}, 1, {"whole, CUDA graphs"}),
        ({"communication": {"compression": "powersgd"}}, 8, {"whole, CUDA graphs"}),
        ({"communication": {"synchronise_every": 4}}, 8, {"whole, CUDA graphs"}),
        ({"ranks_per_gpu": 2}, 2, {"whole, CUDA graphs"}),
    ],
    ids=lambda value: "" if isinstance(value, set) else str(value),
)
def test_graphs_are_tried_on_a_gpu_where_the_step_can_be_recorded(
    keys: dict[str, Any], size: int, more: set[str]
) -> None:
    config = msgspec.convert({"network": "vgg11", "batch": 16, "data": {"image_size": 16}, **keys}, Config)
    on_gpu = World(0, size, 0, size, torch.device("cuda", 0))
    assert compilations(config, small_network(), on_gpu).keys() == FORMS | more
    assert compilations(config, small_network(), ALONE).keys() == FORMS


def test_where_the_graph_was_chosen_the_step_is_recorded() -> None:
    engine = SimpleNamespace(measured={"compile": {"chosen": GRAPH}})
    auto = msgspec.structs.replace(SMALL, compile="auto")
    assert cuda_graph.settled(auto, engine).compile == GRAPH  # type: ignore[arg-type]
    assert cuda_graph.settled(auto, SimpleNamespace(measured={})) is auto  # type: ignore[arg-type]
