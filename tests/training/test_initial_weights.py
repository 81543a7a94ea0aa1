"""Trainings that begin with trained weights: torchvision's files, runs, the paper's net A; and files that are refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
import yaml
from torch import Tensor, nn
from torchvision.transforms import functional

from tests.model.test_network import ours_on_meta, random_weights, torchvision_on_meta
from tests.support.rank_processes import CPU, Launch, Ranks
from tests.support.run_folders import latest, metrics
from vgg_ddp.config import Config
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from vgg_ddp.distributed.world import ALONE, joined
from vgg_ddp.errors import UserError
from vgg_ddp.export import export
from vgg_ddp.model import VGG, initialize, vgg
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.files import file_sha256
from vgg_ddp.run.trained_weights import find_weights
from vgg_ddp.training.initial_weights import InitialWeights, differences, initial_weights, take
from vgg_ddp.training.parts import build_network, build_preprocess, empty_network

Weights = dict[str, Tensor]


def configured(network: str = "A", **model: Any) -> Config:
    """A configuration for 32 pixels, without batch normalisation unless `model` sets it."""
    settings = {"network": network, "device": "cpu", "channels_last": False, "seed": 5}
    return msgspec.convert({**settings, "model": {"batch_norm": False, **model}}, Config)


def beginning(config: Config, classes: int, place: Path) -> InitialWeights:
    return initial_weights(config, classes, RunDirectory(place / "no run"), ALONE)


def started(config: Config, classes: int, begin: InitialWeights) -> Weights:
    return build_network(config, classes, ALONE.device, begin.set).state_dict()


def convolutions(name: str) -> Weights:
    """Random weights of one of torchvision's networks without its head, which would take 500 MB."""
    shapes = {n: t.shape for n, t in torchvision_on_meta(name).state_dict().items() if n.startswith("features.")}
    return random_weights(shapes, seed=1)


@pytest.fixture(scope="module")
def trained() -> Weights:
    """A net A with the paper's head for ten classes at 32 pixels."""
    network = vgg("A", num_classes=10, image_size=32)
    return random_weights({n: t.shape for n, t in network.state_dict().items()}, seed=2)


@torch.no_grad()
def test_torchvision_s_file_gives_torchvision_s_logits(runs: Path, few_digits: Path) -> None:
    """With batch normalisation, where torchvision's convolutions have biases; pixels go through both normalisations."""
    theirs = torchvision_on_meta("vgg11_bn").eval()
    theirs.load_state_dict(random_weights({n: t.shape for n, t in theirs.state_dict().items()}, seed=3), assign=True)
    path = runs / "vgg11_bn.pth"
    torch.save(theirs.state_dict(), path)
    config = configured("vgg11", batch_norm=True, head="paper", initialize_from=str(path))
    data = msgspec.structs.replace(config.data, image_size=224, normalisation="imagenet")
    config = msgspec.structs.replace(config, data=data)
    begin = beginning(config, 1000, runs)
    path.unlink()
    ours = build_network(config, 1000, ALONE.device, begin.set).eval()
    pixels = torch.randint(256, (1, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    preset = torchvision.models.VGG11_BN_Weights.IMAGENET1K_V1.transforms()
    inputs = functional.normalize(pixels.permute(0, 3, 1, 2) / 255, preset.mean, preset.std)
    expected = theirs(inputs)
    found = ours(build_preprocess(config, Dataset(few_digits), ALONE.device)(pixels))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    (choice,) = begin.choices
    assert choice.startswith("initial weights: 8 convolutions and 3 layers of the head of network A, from ")


def saved(weights: Weights, form: str, place: Path) -> Path:
    path = place / f"{form}.{'safetensors' if form == 'safetensors' else 'pth'}"
    if form == "safetensors":
        safetensors.torch.save_file(weights, path)
    elif form == "parameters":  # as a module's own dictionary has them
        torch.save({n: nn.Parameter(t) if t.is_floating_point() else t for n, t in weights.items()}, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=form != "before torch 1.6")
    return path


@pytest.mark.parametrize("form", ["safetensors", "parameters", "before torch 1.6"])
def test_each_form_of_file_is_read_and_a_head_for_other_classes_is_drawn(form: str, tmp_path: Path) -> None:
    weights = {n: t for n, t in convolutions("vgg11_bn").items() if not n.endswith("num_batches_tracked")}
    path = saved(weights, form, tmp_path)
    config = configured("A", batch_norm=True, head="compact", initialize_from=str(path))
    begin = beginning(config, 3, tmp_path)
    network = build_network(config, 3, ALONE.device, begin.set)
    expected = vgg("A", True, "compact", 3, 32)
    expected.load_state_dict({**expected.state_dict(), **weights})
    drawn = build_network(config, 3, ALONE.device).state_dict()
    for name, tensor in network.state_dict().items():
        wanted = drawn if name.startswith("classifier.") or name.endswith("tracked") else expected.state_dict()
        assert torch.equal(tensor, wanted[name]), name
    assert begin.record is not None and begin.record["sha256"] == file_sha256(path)
    assert "drawn from the seed: the head from classifier.0.weight on, [3, 512], not there" in begin.choices[0]


def test_what_is_trained_in_half_precision_is_read_in_single(tmp_path: Path) -> None:
    half = {n: t.half() for n, t in convolutions("vgg11").items()}
    config = configured("A", head="compact", initialize_from=str(saved(half, "safetensors", tmp_path)))
    found = started(config, 3, beginning(config, 3, tmp_path))
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in half.items())


# Section 3.1: "the first four convolutional layers and the last three fully-connected layers with the layers of net A"; by
# table 1 these are conv1_1, conv2_1, conv3_1 and conv3_2, here the layers of these numbers.
OF_NET_A = (0, 3, 6, 8)
DEEPER = {"A-LRN": (0, 4, 7, 9), "B": (0, 5, 10, 12), "C": (0, 5, 10, 12), "D": (0, 5, 10, 12), "E": (0, 5, 10, 12)}


@pytest.mark.parametrize("network", DEEPER)
def test_staged_initialisation_copies_the_layers_that_the_paper_names(network: str, trained: Weights) -> None:
    config = configured(network, head="paper", initialize_from="A", initialize_layers="paper")
    taken, _ = take(trained, Path("A"), empty_network(config, 10, ALONE.device), config)
    expected = {n: t for n, t in trained.items() if n.startswith("classifier.")}
    for ours, theirs in zip(DEEPER[network], OF_NET_A):
        expected |= {f"features.{ours}.{kind}": trained[f"features.{theirs}.{kind}"] for kind in ("weight", "bias")}
    assert taken.keys() == expected.keys()
    assert all(torch.equal(taken[name], expected[name]) for name in taken)


@pytest.mark.seconds
def test_staged_initialisation_leaves_every_other_layer_as_it_is_drawn(trained: Weights, tmp_path: Path) -> None:
    path = saved(trained, "safetensors", tmp_path)
    config = configured("B", head="paper", initialization="paper", initialize_from=str(path), initialize_layers="paper")
    begin = beginning(config, 3, tmp_path)
    found, drawn = started(config, 3, begin), build_network(config, 3, ALONE.device).state_dict()
    assert begin.record is not None
    for name, tensor in found.items():
        assert (name in begin.record["taken"]) != torch.equal(tensor, drawn[name]), name
    last = "the head from classifier.6.weight on, [3, 4096], there [10, 4096]"
    assert f"4 convolutions and 2 layers of the head of network A; drawn from the seed: {last}" in begin.choices[0]


def test_staged_initialisation_takes_batch_norms_with_their_convolutions() -> None:
    weights = convolutions("vgg11_bn")
    config = configured("D", batch_norm=True, head="compact", initialize_from="A", initialize_layers="paper")
    taken, _ = take(weights, Path("A"), empty_network(config, 10, ALONE.device), config)
    numbers = {0: 0, 1: 1, 7: 4, 8: 5, 14: 8, 15: 9, 17: 11, 18: 12}  # ours to torchvision's
    expected = {name for name in ours_on_meta("vgg16_bn").state_dict() if int(name.split(".")[1]) in numbers}
    assert taken.keys() == {name for name in expected if name.startswith("features.")}
    for name, tensor in taken.items():
        _, number, kind = name.split(".")
        assert torch.equal(tensor, weights[f"features.{numbers[int(number)]}.{kind}"]), name


def test_the_convolutions_alone_can_be_taken(trained: Weights, tmp_path: Path) -> None:
    path = saved(trained, "safetensors", tmp_path)
    config = configured("A", head="paper", initialize_from=str(path), initialize_layers="features")
    begin = beginning(config, 10, tmp_path)
    assert begin.record is not None
    assert begin.record["taken"] == sorted(name for name in trained if name.startswith("features."))


class Canary:
    """What a pickle would have executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def old_tar(path: Path, canary: Path) -> None:
    """A file as torch wrote it in 2016: a tar of pickles."""
    (path.parent / "pickle").write_bytes(pickle.dumps(Canary(canary)))
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.add(path.parent / "pickle", name)


def refusal(path: Path, weights: Any, **model: Any) -> str:
    """The error with which the file `path` is refused; `weights` are first saved into it, unless None."""
    if weights is not None:
        torch.save(weights, path)
    config = configured(**{"head": "compact", "initialize_from": str(path), **model})
    with pytest.raises(UserError) as refused:
        beginning(config, 3, path.parent)
    text = str(refused.value)
    assert "\n" not in text and len(text) < 500
    assert str(path) in text
    return text


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    path, canary = tmp_path / "evil.pth", tmp_path / "canary"
    for legacy in (False, True):
        torch.save({"features.0.weight": Canary(canary)}, path, _use_new_zipfile_serialization=not legacy)
        assert "it would call posix.mkdir" in refusal(path, None)
    path.write_bytes(pickle.dumps(Canary(canary)))
    refusal(path, None)
    old_tar(path, canary)
    refusal(path, None)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))  # noqa: S301 (it does run where a pickle is executed)
    assert canary.exists()


@pytest.mark.seconds
def test_what_is_no_network_that_fits_is_refused_in_one_line(trained: Weights, tmp_path: Path) -> None:
    path = tmp_path / "some.pth"
    assert "save a state dict of tensors alone" in refusal(path, nn.Linear(2, 2))
    assert "but list" in refusal(path, [torch.zeros(2)])
    assert "but of epoch, state_dict" in refusal(path, {"epoch": 3, "state_dict": trained})
    resnet = {"conv1.weight": torch.zeros(64, 3, 7, 7), "bn1.weight": torch.zeros(64)}
    assert "it has no features.0.weight, but conv1.weight, bn1.weight" in refusal(path, resnet)
    narrow = {**trained, "features.0.weight": torch.zeros(32, 3, 3, 3)}
    assert "features.0.weight has shape [32, 3, 3, 3], not [64, 3, 3, 3]" in refusal(path, narrow)
    of_a = "is of network A without batch normalisation, this training of "
    assert f"{of_a}D without batch normalisation" in refusal(path, trained, network="vgg16")
    need = "set network=A model.batch_norm=false"
    assert f"{of_a}A with batch normalisation: {need}" in refusal(path, None, batch_norm=True)
    endless = {**trained, "features.8.bias": torch.full((256,), torch.inf)}
    assert "holds features.8.bias that is not finite" in refusal(path, endless)
    counted = {**trained, "features.8.bias": torch.ones(256, dtype=torch.int32)}
    assert "holds features.8.bias as torch.int32" in refusal(path, counted)
    deep = convolutions("vgg13")
    assert "is of network B without" in refusal(path, deep, initialize_layers="paper")
    tiny = refusal(path, trained, network="vgg_tiny", initialize_layers="paper")
    assert "model.initialize_layers=paper is for the paper's networks, not for network=vgg_tiny" in tiny
    whole = saved(trained, "safetensors", tmp_path).read_bytes()
    for name in ("cut.safetensors", "cut.pth", "empty.pth"):
        (tmp_path / name).write_bytes(b"" if name.startswith("empty") else whole[:1000])
        refusal(tmp_path / name, None)


def test_what_is_not_there_is_refused_before_a_rank_starts(tmp_path: Path) -> None:
    for place, reason in ((tmp_path / "gone", "does not exist"), (tmp_path, "neither a run")):
        with pytest.raises(UserError, match=reason):
            find_weights(str(place))


def begin_on_ranks(name: str, output: Path) -> int:
    """As a rank; only the first can read the weights."""
    with joined(devices=CPU) as world:
        config = configured("A", head="compact", initialize_from=name if world.is_main else "on another host")
        begin = initial_weights(config, 3, RunDirectory(output / "no run"), world)
        found = started(config, 3, begin)
        digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in found.values()))
        (output / str(world.rank)).write_text(digest.hexdigest())
    return 0


@pytest.mark.seconds
def test_every_rank_begins_with_the_bits_that_rank_0_reads(tmp_path: Path) -> None:
    path = saved(convolutions("vgg11"), "safetensors", tmp_path)
    ranks = Ranks(begin_on_ranks, (str(path), tmp_path), 2, tmp_path / "output")
    assert ranks.wait() == [0, 0], ranks.stderr
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()


def test_a_run_keeps_whence_it_began_and_never_reads_it_again(
    launch: Launch, runs: Path, few_digits: Path, tmp_path: Path
) -> None:
    """From torchvision's file to an export: trained, continued without the file, evaluated and exported alike."""
    source, run = saved(convolutions("vgg11_bn"), "safetensors", tmp_path), runs / "tuned"
    words = ("network=vgg11", "optimizer.learning_rate=0.001", f"model.initialize_from={source}")
    first = launch("tuned", *words, "min_steps=1")
    assert first.wait() == [0], first.stderr
    sha256 = file_sha256(source)
    for line in ("data.normalisation=imagenet", f"from {source} (sha256 {sha256[:12]})"):
        assert line in first.stdout
    source.unlink()
    again = launch("tuned", *words, "min_steps=2", "resume=auto")
    assert again.wait() == [0], again.stderr
    assert "initial weights" not in again.stdout
    assert [row["step"] for row in metrics(run) if row["scope"] == "steps"] == [1, 2]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["model"]["initialize_from"], config["data"]["normalisation"]) == (str(source), "imagenet")
    record = json.loads((run / "environment.json").read_text())["initial_weights"]
    assert (record["path"], record["sha256"]) == (str(source), sha256)
    exported = export(run, "safetensors", None, [])
    with safetensors.safe_open(exported.path, framework="pt") as file:
        about = {name: json.loads(value) for name, value in file.metadata().items()}
        network = vgg("A", True, "compact", 10, 16)
        network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    assert (about["mean"], about["std"]) == (IMAGENET_MEAN, IMAGENET_STD)
    images = np.load(few_digits / "test.images.npy")[:, 8:24, 8:24].astype(np.float32)
    inputs = torch.from_numpy((images - np.float32(about["mean"])) / np.float32(about["std"])).permute(0, 3, 1, 2)
    with torch.no_grad(), np.load(run / "evaluation" / "predictions.npz") as found:
        expected = network.eval()(inputs).softmax(dim=1).numpy()
        np.testing.assert_allclose(found["probabilities"], expected, rtol=1e-3, atol=1e-5)


def test_a_run_and_its_checkpoints_are_taken_as_they_are_evaluated(launch: Launch, runs: Path) -> None:
    """With averaged weights, which are what is evaluated; a checkpoint may also lie outside its run."""
    ranks = launch("averaged", "min_steps=2", "ema=0.5")
    assert ranks.wait() == [0], ranks.stderr
    folder = latest(runs / "averaged")
    shutil.copytree(folder, runs / "copied")
    expected = safetensors.torch.load_file(folder / "ema.safetensors")
    for place in (runs / "averaged", folder, runs / "copied"):
        config = configured("vgg_tiny", batch_norm=True, head="compact", initialize_from=str(place))
        begin = beginning(config, 10, runs)
        found = started(config, 10, begin)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert begin.record is not None and begin.record["sha256"] == file_sha256(folder / "manifest.json")
        assert "drawn" not in begin.choices[0] and len(begin.choices) == 1


def test_without_trained_weights_a_network_is_drawn_from_the_seed(tmp_path: Path) -> None:
    config = configured("A", head="compact")
    begin = beginning(config, 3, tmp_path)
    expected: VGG = vgg("A", False, "compact", 3, 32)
    initialize(expected, "kaiming", 5)
    assert (begin.choices, begin.record) == ([], None)
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in started(config, 3, begin).items())


def test_what_the_weights_run_computes_otherwise_is_said(tmp_path: Path) -> None:
    model = "{activation: gelu, logit_scale: 0.11}"
    (tmp_path / "config.yaml").write_text(f"network: vgg11\nmodel: {model}\ndata: {{normalisation: imagenet}}\n")
    assert differences(tmp_path, Config(network="vgg11")) == [
        "model.activation=relu, where the initial weights had gelu",
        "model.logit_scale=1.0, where the initial weights had 0.11",
        "data.normalisation=auto, where the initial weights had imagenet",
    ]
    assert differences(tmp_path / "a file", Config(network="vgg11")) == []
