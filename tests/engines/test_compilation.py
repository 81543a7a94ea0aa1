"""torch.compile: the same network, chosen only where it is quicker, and passed over where it cannot be had."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support.rank_processes import CPU, Ranks
from vgg_ddp import engines
from vgg_ddp.config import Config
from vgg_ddp.config.communication import CommunicationConfig
from vgg_ddp.config.data import DataConfig
from vgg_ddp.distributed.world import World, joined
from vgg_ddp.engines.compilation import EAGER, compilations, compiled
from vgg_ddp.engines.trials import quickest
from vgg_ddp.errors import UserError
from vgg_ddp.model import VGG, initialize, vgg

pytestmark = pytest.mark.processes

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def small_network() -> VGG:
    network = vgg("A", True, "compact", 10, 16)
    initialize(network, "kaiming", 0)
    return network


def losses(network: nn.Module, train: nn.Module) -> list[float]:
    """Of three steps by `train`, on the parameters of `network`."""
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


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # the compiler looks at a stage's input
@pytest.mark.parametrize("name", ["whole", "stages"])
def test_compiled_has_the_losses_statistics_and_names_of_eager(name: str) -> None:
    torch.compiler.reset()
    eager, network = small_network(), small_network()
    assert losses(network, compilations(network, ALONE.device, 1)[name]()) == pytest.approx(
        losses(eager, eager), rel=2e-3
    )
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
        name: lambda wait=wait: Slow(network, wait) for name, wait in (("eager", 0.2), ("a", 0.0), ("b", 0.4))
    }
    choice, seconds, problems = quickest({**waits, "c": fails}, trial, network, ALONE, may_fail=True)
    assert (choice, problems) == ("a", {"c": "no compiler"})
    assert seconds["a"] < seconds["eager"] < seconds["b"] < seconds["c"] == float("inf")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    with pytest.raises(RuntimeError, match="no compiler"):
        quickest({"first": fails, **waits}, trial, network, ALONE, may_fail=True)


def test_without_a_compiler_auto_is_eager_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config as inductor

    torch.compiler.reset()
    monkeypatch.setattr(inductor.cpp, "cxx", (str(tmp_path / "no-compiler"),))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    config = Config(network="vgg11", batch=4, precision="fp32", compile="auto", data=DataConfig(image_size=16))
    engine = engines.build(config, small_network(), ALONE)
    found = engine.measured["compile"]
    assert found["chosen"] == EAGER
    assert set(found["problems"]) == {"whole", "stages"}
    loss, logits = engine.forward(torch.randn(4, 3, 16, 16), torch.tensor([1, 2, 3, 4]), last=True)
    assert logits.shape == (4, 10)
    engine.backward(loss)
    network = small_network()
    with pytest.raises(UserError, match=r"compile=true: torch.compile fails here .*; set compile=false"):
        compiled(
            network, True, 1, lambda: lambda candidate: candidate(torch.randn(4, 3, 16, 16)).sum().backward(), ALONE
        )


def choose_with_local_sgd(output: Path) -> int:
    """As a rank: let `compile=auto` choose under local SGD; write what was measured, and the sizes of the trials' batches."""
    torch.compiler.set_stance("force_eager")  # all candidates run uncompiled: nearly as fast as one another
    config = Config(
        network="vgg11",
        batch=24,
        accumulation=2,
        precision="fp32",
        compile="auto",
        data=DataConfig(image_size=16),
        communication=CommunicationConfig(synchronise_every=8),
    )
    with joined(devices=CPU) as world:
        world.use_threads(1)
        network, sizes = small_network(), set[int]()
        network.classifier.register_forward_pre_hook(lambda module, inputs: sizes.add(len(inputs[0])))
        engine = engines.build(config, network, world)
        (output / str(world.rank)).write_text(json.dumps([engine.measured["compile"], sorted(sizes)]))
    return 0


def test_ranks_of_local_sgd_choose_together_by_trials_of_their_own_micro_batch(runs: Path) -> None:
    """24 images are two micro-batches of 6 on each of two ranks. The seconds, means over the ranks, are the same bits."""
    output = runs / "local SGD"
    output.mkdir()
    ranks = Ranks(choose_with_local_sgd, (output,), 2, runs / "local SGD output")
    assert ranks.wait() == [0, 0], ranks.stderr
    (first, sizes), second = (json.loads((output / rank).read_text()) for rank in "01")
    assert second == [first, sizes]
    assert first["seconds"].keys() == {EAGER, "whole", "stages"}
    assert sizes == [6]


def test_no_cuda_graph_where_micro_batches_accumulate() -> None:
    """Each pass of a graph overwrites what the one before it left."""
    network, gpu = vgg("A", True, "compact", 10, 16), torch.device("cuda", 0)
    assert "whole, CUDA graphs" in compilations(network, gpu, 1)
    assert compilations(network, gpu, 2).keys() == compilations(network, ALONE.device, 2).keys()
