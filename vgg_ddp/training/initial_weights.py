"""The weights that a training begins with: drawn from the seed, or those of a trained network (`model.initialize_from`).

Rank 0 reads and checks them, and sends the others what it takes of them. A run that is continued does not read them again.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import safetensors.torch
import torch
from torch import Tensor, nn

from vgg_ddp.config import Config, load
from vgg_ddp.distributed.world import World
from vgg_ddp.errors import UserError
from vgg_ddp.model import VGG, initialize, vgg
from vgg_ddp.model.convolution import Convolution
from vgg_ddp.model.network import CONFIGURATIONS, USUAL_NAMES
from vgg_ddp.run import checkpoint
from vgg_ddp.run.contents import is_finite
from vgg_ddp.run.directory import RunDirectory, find_run
from vgg_ddp.run.files import read_json
from vgg_ddp.run.trained_weights import find_weights
from vgg_ddp.training.parts import empty_network

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64)
COUNT = "num_batches_tracked"  # torch counts batches since 0.4.1; torchvision's older files do not have it
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class InitialWeights:
    """What a network begins with.

    Attributes:
        set: gives a network its weights; each time, and on every rank, the same bits.
        choices: what was taken from where, a line each.
        record: the same for RUN/environment.json; None where all weights are drawn from the seed.
    """

    set: Callable[[VGG], None]
    choices: list[str]
    record: dict[str, Any] | None


def initial_weights(config: Config, num_classes: int, run: RunDirectory, world: World) -> InitialWeights:
    """The weights that `config.model` asks for. All ranks together.

    Raises:
        UserError: `model.initialize_from` cannot be read, or is of another network.
    """
    draw = partial(initialize, method=config.model.initialization, seed=config.seed)
    if config.model.initialize_from is None:
        return InitialWeights(draw, [], None)
    files = checkpoint.unpack(world.from_main(lambda: _read(config, num_classes, run)))
    taken = checkpoint.tensors(files, "weights")
    return InitialWeights(
        partial(_draw_and_load, draw, taken),
        msgspec.json.decode(files["choices"], type=list[str]),
        msgspec.json.decode(files["record"]),
    )


@torch.no_grad()
def _draw_and_load(draw: Callable[[VGG], None], taken: Weights, network: VGG) -> None:
    """Draw all weights, then load those taken: the others are the same as without `model.initialize_from`."""
    draw(network)
    if taken:
        network.load_state_dict({**network.state_dict(), **taken})


def _read(config: Config, num_classes: int, run: RunDirectory) -> bytes:
    """The tensors to take, packed for the other ranks; none where a checkpoint of the run will replace them."""
    if checkpoint.find(run.checkpoints):
        record = (read_json(run.environment) or {}).get("initial_weights")
        return _packed({}, [], record)
    name = config.model.initialize_from
    assert name is not None
    place = find_weights(name)
    weights, sha256 = read_checkpoint(place) if place.is_dir() else read_file(place)
    taken, what = take(weights, place, empty_network(config, num_classes, torch.device("cpu")), config)
    choices = [f"initial weights: {what}, from {place} (sha256 {sha256[:12]})", *differences(place, config)]
    return _packed(taken, choices, {"path": str(place.resolve()), "sha256": sha256, "taken": sorted(taken)})


def _packed(taken: Weights, choices: list[str], record: dict[str, Any] | None) -> bytes:
    texts = {"choices": msgspec.json.encode(choices), "record": msgspec.json.encode(record)}
    return checkpoint.pack({"weights": safetensors.torch.save(taken), **texts})


def differences(place: Path, config: Config) -> list[str]:
    """A line for each key whose value in the checkpoint's own run makes the same weights compute something else."""
    try:
        theirs = load(find_run(place)[0].config)
    except UserError:  # a file, or a checkpoint that was copied out of its run
        return []
    values = {f"model.{name}": (ours, theirs.model.variant[name]) for name, ours in config.model.variant.items()}
    normalisations = config.data.normalisation, theirs.data.normalisation
    if "imagenet" in normalisations:  # the others are by each data set's own values
        values["data.normalisation"] = normalisations
    return [
        f"{key}={ours}, where the initial weights had {other}" for key, (ours, other) in values.items() if ours != other
    ]


def read_checkpoint(folder: Path) -> tuple[Weights, str]:
    """The weights in a checkpoint, the averaged ones where it has them, and the sha256 of its manifest, which hashes them.

    Raises:
        Damaged: it is not whole.
    """
    files = checkpoint.read(folder)
    name = "ema.safetensors" if "ema.safetensors" in files else "model.safetensors"
    return checkpoint.tensors(files, name), hashlib.sha256(files["manifest.json"]).hexdigest()


def read_file(path: Path) -> tuple[Weights, str]:
    """The tensors of a file by name, and its sha256: safetensors by its suffix, else what torch.save wrote of a state dict.

    torch's reader for weights alone builds tensors and containers, and calls nothing that a file names.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            found = safetensors.torch.load(data)
        else:
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # of a file that may hold anything: unpickling raises errors of every kind
        called = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it would call {called[1]}" if called else next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{path} cannot be read as weights ({reason:.200}); save a state dict of tensors alone, e.g. as safetensors"
        ) from None
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        inside = f"of {', '.join(map(str, list(found)[:3]))}" if isinstance(found, Mapping) else type(found).__name__
        raise UserError(f"{path} is no state dict, tensors by name, but {inside:.200}; save model.state_dict() alone")
    for name, tensor in found.items():
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided:
            raise UserError(f"{path} holds {name} as {tensor.dtype} ({tensor.layout}); save plain float32 weights")
    return {str(name): tensor.detach() for name, tensor in found.items()}, hashlib.sha256(data).hexdigest()


def take(weights: Weights, place: Path, network: VGG, config: Config) -> tuple[Weights, str]:
    """The tensors that `network`, on the meta device, takes from `weights`, by its own names, and that in words.

    Raises:
        UserError: the weights are of another network, or not finite.
    """
    kind = config.model.initialize_layers
    ours = (USUAL_NAMES.get(config.network, config.network), config.model.batch_norm)
    theirs = _configuration(weights)
    if theirs is None:
        raise UserError(f"{place} holds no VGG that is known here: {_difference(weights, network)}")
    fits = (theirs[0] in ("A", "A-LRN") and theirs[1] == ours[1]) if kind == "paper" else theirs == ours
    if not fits:
        need = f"set network={theirs[0]} model.batch_norm={str(theirs[1]).lower()}, or take other weights"
        if kind == "paper":
            need = f"model.initialize_layers=paper takes a net A {_norms(ours[1])}"
        raise UserError(
            f"{place} is of network {theirs[0]} {_norms(theirs[1])}, this training of {ours[0]} {_norms(ours[1])}: {need}"
        )
    if kind == "paper":
        names = _paper_names(_empty(*theirs), network, theirs[1])
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        if any(weights[other].shape != shapes[name] for name, other in names.items() if other in weights):
            raise UserError(
                f"{place}: model.initialize_layers=paper is for the paper's networks, not for network={config.network}"
            )
    else:
        names = {name: name for name in network.state_dict() if name.startswith("features.")}
    convolutions = len([name for name, weight in network.state_dict().items() if name in names and weight.ndim == 4])
    head, drawn = _head({} if kind == "features" else weights, network)
    names |= {name: name for name in head}
    taken = {
        name: (weights[other] if other.endswith(COUNT) else weights[other].float()).contiguous()
        for name, other in names.items()
        if other in weights
    }
    for name, tensor in taken.items():
        if not is_finite(tensor):
            raise UserError(f"{place} holds {names[name]} that is not finite; take other weights")
    what = f"{convolutions} convolutions and {len(head) // 2} layers of the head of network {theirs[0]}"
    return taken, f"{what}; drawn from the seed: {drawn}" if drawn else what


def _norms(batch_norm: bool) -> str:
    return f"with{'' if batch_norm else 'out'} batch normalisation"


def _empty(configuration: str, batch_norm: bool) -> VGG:
    with torch.device("meta"):
        return vgg(configuration, batch_norm, "compact", 1, 32)


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {n: t.shape for n, t in weights.items() if n.startswith("features.") and not n.endswith(COUNT)}


def _configuration(weights: Weights) -> tuple[str, bool] | None:
    """The column of the paper's table 1 that has these convolutions, and whether batch norms follow them; None: no column."""
    found = _shapes(weights)
    every = itertools.product(CONFIGURATIONS, (False, True))
    return next((kind for kind in every if _shapes(_empty(*kind).state_dict()) == found), None)


def _difference(weights: Weights, network: VGG) -> str:
    found, wanted = _shapes(weights), _shapes(network.state_dict())
    for name, shape in wanted.items():
        if name not in found:
            return f"it has no {name}, but {', '.join(list(weights)[:2]) or 'nothing'}"
        if found[name] != shape:
            return f"its {name} has shape {list(found[name])}, not {list(shape)}"
    return f"it has {next(name for name in found if name not in wanted)}"


def _places(network: VGG) -> Iterator[tuple[tuple[int, int], int]]:
    """Of each convolution, its stage and its place in it, as in conv3_1, and its number among the layers."""
    stage, place = 1, 0
    for number, layer in enumerate(network.features):
        if isinstance(layer, nn.MaxPool2d):
            stage, place = stage + 1, 0
        elif isinstance(layer, Convolution):
            place += 1
            yield (stage, place), number


def _paper_names(source: VGG, network: VGG, batch_norm: bool) -> dict[str, str]:
    """Our names to theirs of the first four convolutions of net A: conv1_1, conv2_1, conv3_1 and conv3_2 (section 3.1)."""
    numbers = dict(_places(network))
    return {
        f"features.{numbers[place] + offset}.{kind}": f"features.{number + offset}.{kind}"
        for place, number in itertools.islice(_places(source), 4)
        for offset in ((0, 1) if batch_norm else (0,))
        for kind in (("weight", "bias") if offset == 0 else ("weight", "bias", "running_mean", "running_var", COUNT))
    }


def _head(weights: Weights, network: VGG) -> tuple[Weights, str]:
    """The layers of the head from the first up to the last that fits, and, in words, those left to draw.

    A layer above one that is drawn anew would be given other inputs than it was trained on.
    """
    ours = {n: t for n, t in network.state_dict().items() if n.startswith("classifier.")}
    taken: Weights = {}
    for name in [name.removesuffix(".weight") for name in ours if name.endswith(".weight")]:
        layer = {key: weights.get(key) for key in (f"{name}.weight", f"{name}.bias")}
        for key, tensor in layer.items():
            if tensor is None or tensor.shape != ours[key].shape:
                there = "not there" if tensor is None else f"there {list(tensor.shape)}"
                return taken, f"the head from {key} on, {list(ours[key].shape)}, {there}"
        taken |= {key: weights[key] for key in layer}
    return taken, ""
