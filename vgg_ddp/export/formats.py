"""The formats of an export: how each is written, and how its own runtime answers.

To add one: a function that writes it, one that runs what was written, and its line in `FORMATS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vgg_ddp.model.network import vgg
from vgg_ddp.model.preprocess import Preprocess

IMAGES_AT_ONCE = 250  # that are answered to in a check


class Contents(msgspec.Struct, frozen=True):
    """What an exported file says about itself, in its metadata: each value as JSON under the name of its field.

    Attributes:
        labels: the classes, in the order of the logits.
        mean, std: what pixels are normalised with, by channel, in units of 0 to 255.
        image_size: side of the images that the network takes, pixels.
        variant: what else `vgg_ddp.model.vgg` takes: the activation, the place of the pool, the scale of the logits.
        resize: to what the shorter side is resized before the centre crop; None: not at all.
    """

    labels: list[str]
    mean: list[float]
    std: list[float]
    image_size: int
    resize: int | None
    network: str
    batch_norm: bool
    head: str
    variant: dict[str, Any]
    dataset: str
    dataset_sha256: str
    checkpoint_sha256: str
    vgg_ddp: str

    def metadata(self) -> dict[str, str]:
        """The fields as safetensors, ONNX and torch.export take them: names and JSON."""
        return {name: json.dumps(value) for name, value in msgspec.structs.asdict(self).items()}


class Classifier(nn.Module):
    """Pixels, uint8 [n, size, size, 3], RGB, to logits, float [n, classes]."""

    def __init__(self, preprocess: Preprocess, network: nn.Module) -> None:
        super().__init__()
        self.preprocess, self.network = preprocess, network

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.network(self.preprocess(images))


@torch.no_grad()
def logits(classifier: nn.Module, images: Tensor) -> Tensor:
    """What `classifier` answers to `images`, uint8 [n, size, size, 3], in groups of `IMAGES_AT_ONCE`: [n, classes]."""
    return torch.cat([classifier(few) for few in images.split(IMAGES_AT_ONCE)])


@dataclass(frozen=True)
class Format:
    """How a format is written to a file, and how that file answers: images to logits, by its own runtime."""

    suffix: str
    write: Callable[[Path, Classifier, Contents], None]
    answers: Callable[[Path, Contents, Tensor], Tensor]


def write_safetensors(path: Path, classifier: Classifier, contents: Contents) -> None:
    """The network's weights under torchvision's names; the normalisation is in the metadata alone."""
    weights = {name: tensor.contiguous() for name, tensor in classifier.network.state_dict().items()}
    # Not by save_file, whose file nobody but its owner may read.
    path.write_bytes(safetensors.torch.save(weights, metadata=contents.metadata()))


def safetensors_answers(path: Path, contents: Contents, images: Tensor) -> Tensor:
    """The logits of a network that is built anew from the file alone, its metadata included."""
    with safetensors.safe_open(path, framework="pt") as file:
        about = {name: json.loads(value) for name, value in file.metadata().items()}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is no dictionary)
    size = about["image_size"]
    network = vgg(about["network"], about["batch_norm"], about["head"], len(about["labels"]), size, **about["variant"])
    network.load_state_dict(weights)
    return logits(Classifier(Preprocess(about["mean"], about["std"], channels_last=False), network).eval(), images)


def _example(contents: Contents) -> Tensor:
    return torch.zeros(2, contents.image_size, contents.image_size, 3, dtype=torch.uint8)


def _dynamic_shapes() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim("images")},)


def write_onnx(path: Path, classifier: Classifier, contents: Contents) -> None:
    """An ONNX graph from pixels to logits, for any number of images, with `contents` in its metadata."""
    program = torch.onnx.export(
        classifier,
        (_example(contents),),
        dynamo=True,
        dynamic_shapes=_dynamic_shapes(),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(contents.metadata())
    program.save(str(path), external_data=False)


def onnx_answers(path: Path, contents: Contents, images: Tensor) -> Tensor:
    """The logits of ONNX Runtime on the CPU.

    Raises:
        RuntimeError: the file does not hold `contents`.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    if session.get_modelmeta().custom_metadata_map != contents.metadata():
        raise RuntimeError("the ONNX file does not hold the labels and the normalisation")
    answers = [session.run(["logits"], {"images": few.numpy()})[0] for few in images.split(IMAGES_AT_ONCE)]
    return torch.cat([torch.from_numpy(few) for few in answers])


def write_torch_export(path: Path, classifier: Classifier, contents: Contents) -> None:
    """A program of torch.export from pixels to logits, for any number of images, with `contents` beside it."""
    program = torch.export.export(classifier, (_example(contents),), dynamic_shapes=_dynamic_shapes())
    torch.export.save(program, path, extra_files=contents.metadata())


def torch_export_answers(path: Path, contents: Contents, images: Tensor) -> Tensor:
    """The logits of the exported program.

    Raises:
        RuntimeError: the file does not hold `contents`.
    """
    about: dict[str, Any] = dict.fromkeys(contents.metadata(), "")
    classifier = torch.export.load(path, extra_files=about).module()
    if about != contents.metadata():
        raise RuntimeError("the exported program does not hold the labels and the normalisation")
    return logits(classifier, images)


FORMATS = {
    "safetensors": Format(".safetensors", write_safetensors, safetensors_answers),
    "onnx": Format(".onnx", write_onnx, onnx_answers),
    "torch-export": Format(".pt2", write_torch_export, torch_export_answers),
}
