"""What a session runs, in which order: the safest and most informative first, each in less than `SECONDS`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SECONDS = 480.0
CONFIG = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"


@dataclass(frozen=True)
class Stage:
    """A module that is run with these words, and writes its rows to the file that `--json` names."""

    name: str
    module: str
    words: list[str]

    def arguments(self, folder: Path) -> list[str]:
        """The command line after `python -m`."""
        return [self.module, *self.words, "--json", str(self.result(folder))]

    def result(self, folder: Path) -> Path:
        """The file of rows."""
        return folder / f"{self.name}.json"

    def log(self, folder: Path) -> Path:
        """What it printed."""
        return folder / f"{self.name}.log"


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        batches: images in a step, by the side of an image in pixels: the first for precisions and layouts, the smallest and the
            largest for compilation, the last for a profile.
        fused: what `model.fused` may be.
        compilations: what `compile` may be; "false" is measured beside each.
        effort: options of every benchmark that measures in rounds; `threads` of those that train.
        loaded: images in a batch of a loader; `seconds` of a round of it.
        training: keys of the training to an accuracy, and the accuracy.
    """

    network: str
    batches: dict[int, list[int]]
    precisions: list[str]
    fused: list[str]
    compilations: list[str]
    effort: list[str]
    threads: list[str]
    steps: int
    photos: int
    loaded: int
    seconds: float
    peers: list[str]
    seeds: int
    target: float
    training: list[str]


FULL = Size(
    network="vgg16",
    batches={32: [1024, 256, 4096], 224: [64, 256]},
    precisions=["bf16", "fp16", "tf32", "fp32"],
    fused=["true", "false"],
    compilations=["true", "stages", "graph"],
    effort=["--rounds", "5"],
    threads=[],
    steps=20,
    photos=2000,
    loaded=256,
    seconds=2.0,
    peers=["plain loop", "lightning", "accelerate", "deepspeed", "timm"],
    seeds=3,
    target=0.95,
    training=["data.validation=0.1"],
)
SMALL = Size(  # its figures are meaningless: it only has to be quick on a CPU
    network="vgg11",
    batches={32: [2]},
    precisions=["fp32", "tf32"],
    fused=["true"],
    compilations=["graph"],
    effort=["--rounds", "1", "--threads", "1"],
    threads=["--threads", "1"],
    steps=1,
    photos=16,
    loaded=8,
    seconds=0.01,
    peers=["plain loop"],
    seeds=1,
    target=0.01,
    training=[
        "data.validation=0.1",
        "network=vgg11",
        "data.image_size=16",
        "data.train_sizes=[]",
        "batch=32",
        "epochs=0.01",
        "min_steps=1",
        "min_steps_per_epoch=0",
    ],
)


def stages(small: bool, data: str, folder: Path) -> list[Stage]:
    """The stages of a session.

    Args:
        data: source of the data set for the stage that trains to an accuracy.
        folder: of the results.
    """
    size = SMALL if small else FULL
    precision = size.precisions[0]
    effort, steps = size.effort, ["--steps", size.steps]
    found = [
        stage("environment", "gpu_session.environment", "--precisions", *size.precisions, *effort),
        stage("tests", "gpu_session.device_tests", *(["--rehearsal"] if small else [])),
    ]
    for side, batches in size.batches.items():
        cells = ["--networks", size.network, "--image-sizes", side, "--no-plain", *effort, *steps]
        both_layouts = ["--layouts", "channels_last", "contiguous"]
        one_precision = ["--precisions", precision, "--batches", *batches, "--fused", *size.fused]
        arithmetic = ["--precisions", *size.precisions, "--batches", batches[0], *both_layouts]
        found += [
            stage(f"step-{side}", "throughput", *cells, *one_precision),
            stage(f"arithmetic-{side}", "throughput", *cells, *arithmetic),
        ]
    for side, batches in size.batches.items():
        cells = ["--networks", size.network, "--image-sizes", side, "--no-plain", *effort, *steps]
        cells += ["--precisions", precision, "--batches"]
        ends = sorted({min(batches), max(batches)})
        found += [
            stage(f"profile-{side}", "throughput", *cells, batches[-1], "--profile", folder / f"profile-{side}"),
            stage(f"compile-{side}", "throughput", *cells, *ends, "--compile", "false", *size.compilations),
        ]
    side, batches = next(iter(size.batches.items()))
    load = ["--data", "digits", "--photos", size.photos, "--batch", size.loaded, "--seconds", size.seconds]
    others = ["--networks", size.network, "--image-size", side, "--batches", *batches, "--peers", *size.peers]
    goal = ["--target", size.target, "--seeds", size.seeds]
    training = [f"data.source={data}", f"data.directory={folder / 'datasets'}", *size.training]
    return [
        *found,
        stage("loaders", "loaders", *load, *effort),
        stage("peers", "peers", *others, "--precision", precision, *effort, *steps),
        stage("accuracy", "time_to_accuracy", CONFIG, *goal, *size.threads, *training),
    ]


def stage(name: str, benchmark: str, *words: object) -> Stage:
    """The stage of `python -m benchmarks.BENCHMARK WORDS`."""
    return Stage(name, f"benchmarks.{benchmark}", [str(word) for word in words])
