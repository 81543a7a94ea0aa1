"""The paper's protocols against a loop over images, scales, mirrorings and views that anyone can check."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.support.pictures import encode, smooth, write_folder
from tests.support.rank_processes import start, vgg_ddp
from vgg_ddp.augment.pixels import resized
from vgg_ddp.config import Config, load
from vgg_ddp.config.data import DataConfig
from vgg_ddp.config.evaluate import EvaluateConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.ensure import ensure
from vgg_ddp.data.record import encoded, read_record
from vgg_ddp.data.settling import settle
from vgg_ddp.distributed.world import ALONE
from vgg_ddp.errors import UserError
from vgg_ddp.evaluation import protocols
from vgg_ddp.evaluation.ensemble import common_test_set
from vgg_ddp.evaluation.protocols import Protocol
from vgg_ddp.model import VGG
from vgg_ddp.report.error_table import COLUMNS
from vgg_ddp.run.resolved import ResolvedRun
from vgg_ddp.training import parts

SIDE = 16


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """20 test images: some share a shape, some only at a certain scale, and none is square."""
    folder = tmp_path_factory.mktemp("pictures")
    shapes = [(20, 26), (26, 20), (23, 29), (17, 40)]
    files = {
        f"{split}/{name}/{k}.png": encode(smooth(*shapes[k % 4], seed=10 * k + len(name)), "PNG")
        for split, count in (("train", 1), ("test", 10))
        for name in ("cat", "horse")
        for k in range(count)
    }
    write_folder(folder / "images", files)
    config = DataConfig(source=str(folder / "images"), directory=str(folder / "datasets"))
    return Dataset(ensure(config, lambda text: None)[0])


def asking(dataset: Dataset, **keys: Any) -> Config:
    data = DataConfig(source=str(dataset.directory), image_size=SIDE, resize=None)
    return Config(network="vgg11", device="cpu", precision="fp32", data=data, evaluate=EvaluateConfig(batch=30, **keys))


@pytest.fixture(scope="module")
def network(pictures: Dataset) -> VGG:
    network = parts.build_network(asking(pictures), 2, ALONE.device)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        network.classifier[0].weight.copy_(0.1 * torch.randn(2, 512, generator=generator))
    return network.eval()


@torch.no_grad()
def reference(dataset: Dataset, network: VGG, config: Config, flips: bool) -> NDArray[np.float64]:
    """One image, one view at a time; the mean of the soft-max of all views of a kind, and of the kinds."""
    preprocess = parts.build_preprocess(config, dataset, ALONE.device)
    split = dataset.split("test")

    def of_squares(views: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
        return network(preprocess(torch.from_numpy(np.stack(views)))).double().softmax(1).mean(0).numpy()

    def of_whole(view: NDArray[np.uint8]) -> NDArray[np.float64]:
        maps = network.features[:-2](preprocess(torch.from_numpy(view.copy())[None]))
        rows, columns = maps.shape[2:]  # of the last convolution, of which a training image has one pixel
        cells = [network.classifier(maps[:, :, i, j].relu())[0] for i in range(rows) for j in range(columns)]
        return torch.stack(cells).double().mean(0).softmax(0).numpy()

    answers = []
    for k in range(len(split)):
        squares, wholes = [], []
        for scale in config.evaluate.scales or [None]:
            image = resized(split.decode(k), scale)
            height, width = image.shape[:2]
            assert scale is None or min(height, width) == scale
            tops, lefts = ([int(x + 0.5) for x in np.linspace(0, length - SIDE, 5)] for length in (height, width))
            if config.evaluate.protocol in ("single", "shifted"):
                tops, lefts = [(height - SIDE + 1) // 2], [(width - SIDE + 1) // 2]
            for seen in (image, image[:, ::-1]) if flips else (image,):
                wholes.append(seen)
                squares += [seen[top : top + SIDE, left : left + SIDE] for top in tops for left in lefts]
        kinds = []
        if config.evaluate.protocol == "shifted":
            padded = [np.pad(view, [(1, 1), (1, 1), (0, 0)], "reflect") for view in wholes]
            moved = [(tops[0] + step, lefts[0] + step) for step in (0, 2)]
            kinds.append(of_squares([p[top : top + SIDE, left : left + SIDE] for p in padded for top, left in moved]))
        if config.evaluate.protocol != "dense":
            kinds.append(of_squares(squares))
        if "dense" in config.evaluate.protocol:
            kinds.append(np.mean([of_whole(view) for view in wholes], axis=0))
        answers.append(np.mean(kinds, axis=0))
    return np.array(answers)


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("protocol", "scales", "flips", "views"),
    [
        ("single", [18, 24, 35], False, 3),
        ("single", [], True, 2),
        ("shifted", [], True, 6),
        ("shifted", [18], False, 3),
        ("dense", [20, 35], True, 4),
        ("multicrop", [16, 20, 24], True, 150),
        ("dense+multicrop", [], True, 52),
    ],
)
def test_averages_are_those_of_a_loop_over_views(
    pictures: Dataset, network: VGG, protocol: str, scales: list[int], flips: bool, views: int
) -> None:
    config = asking(pictures, protocol=protocol, scales=scales, flips=flips)
    asked = Protocol.of(config)
    preprocess = parts.build_preprocess(config, pictures, ALONE.device)
    split, samples = pictures.split("test"), np.arange(20)
    found = protocols.predict(asked, network, preprocess, split, samples, config, ALONE)
    network.eval()
    assert found is not None
    assert asked.describe()["views"] == views
    assert np.array_equal(found.sample_index, samples) and np.array_equal(found.label, split.labels)
    expected = reference(pictures, network, config, flips)
    assert expected.std(axis=0).min() > 0.001
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-4)
    np.testing.assert_allclose(np.exp(found.logits).sum(axis=1), 1, atol=1e-6)


def test_images_that_are_plain_at_first_are_shown_in_one_view(pictures: Dataset, network: VGG) -> None:
    """The others are answered by all views, and only they are shown again."""
    first = reference(pictures, network, asking(pictures), flips=False)
    every = reference(pictures, network, asking(pictures, protocol="shifted"), flips=True)
    enough = round(float(np.median(first.max(axis=1))), 6)
    config = asking(pictures, protocol="shifted", flips=True, views=enough)
    doubted = first.max(axis=1) < enough
    assert 5 < doubted.sum() < 15
    preprocess = parts.build_preprocess(config, pictures, ALONE.device)
    seen: list[int] = []
    hook = network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    asked, split = Protocol.of(config), pictures.split("test")
    found = protocols.predict(asked, network, preprocess, split, np.arange(20), config, ALONE)
    hook.remove()
    network.eval()
    assert found is not None
    expected = np.where(doubted[:, None], every, first)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-4)
    assert sum(seen) == 20 + 5 * doubted.sum()
    assert asked.describe()["text"].endswith(
        f"; only the first, where that gives a class a probability of {enough:g} or more"
    )


def test_squares_of_images_of_any_shape_share_a_forward_pass(pictures: Dataset, network: VGG) -> None:
    """A photo folder has nearly as many shapes as images: one pass for each would take minutes."""
    config = asking(pictures, scales=[18, 24, 35])
    config = msgspec.structs.replace(config, evaluate=msgspec.structs.replace(config.evaluate, batch=1000))
    preprocess = parts.build_preprocess(config, pictures, ALONE.device)
    seen: list[int] = []
    hook = network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    protocols.predict(Protocol.of(config), network, preprocess, pictures.split("test"), np.arange(20), config, ALONE)
    hook.remove()
    network.eval()
    assert seen == [20, 20, 20]


@pytest.mark.parametrize("name", ["alternating", False])
def test_without_being_asked_a_network_sees_mirrored_images_if_it_was_trained_on_them(
    name: str | bool, pictures: Dataset
) -> None:
    config = asking(pictures, protocol="dense")
    config = msgspec.structs.replace(config, augment=msgspec.structs.replace(config.augment, flip=name))
    assert Protocol.of(config).flips is bool(name)
    single = msgspec.structs.replace(config, evaluate=EvaluateConfig())
    assert not Protocol.of(single).flips


def test_names_of_folders_tell_protocols_apart() -> None:
    asked = [
        EvaluateConfig(protocol=protocol, scales=scales, flips=flips)
        for protocol in ("single", "shifted", "dense", "multicrop", "dense+multicrop")
        for scales in ([], [32], [32, 40])
        for flips in ("auto", True, False)
    ]
    names = [keys.name for keys in asked]
    assert len(set(names)) == len(names) - 3  # single does not mirror unless asked
    assert [keys for keys, name in zip(asked, names) if not name] == [EvaluateConfig(), EvaluateConfig(flips=False)]
    assert EvaluateConfig(protocol="dense", scales=[256, 384], flips=False).name == "dense-256-384-no-flips"
    assert EvaluateConfig(protocol="shifted", views=0.6).name == "shifted-if-below-0.6"


def test_it_is_said_that_images_are_enlarged(pictures: Dataset) -> None:
    (line,) = settle(asking(pictures, scales=[18, 24]), pictures)[1]
    assert line.startswith("evaluate.scales=24: 20 of 20 test images, of 17 to 23 pixels, are enlarged to it")
    assert settle(asking(pictures, scales=[16, 17]), pictures)[1] == []


def test_an_image_that_is_too_small_for_the_network_is_refused_by_name(pictures: Dataset, network: VGG) -> None:
    config = asking(pictures, protocol="dense")
    config = msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, image_size=18))
    preprocess = parts.build_preprocess(config, pictures, ALONE.device)
    with pytest.raises(UserError, match=r"test/cat/3\.png is 40 x 17 pixels, smaller than data\.image_size \(18\)"):
        protocols.predict(
            Protocol.of(config), network, preprocess, pictures.split("test"), np.arange(20), config, ALONE
        )
    with pytest.raises(UserError, match=r"evaluate\.scales \(24\) is smaller than data\.image_size \(32\)"):
        load(
            Path("configs/vgg11_short.yaml"), ["data.image_size=32", "data.photo_size=null", "evaluate.scales=[24,40]"]
        )


@pytest.fixture(scope="module")
def run(train: Any) -> Path:
    """The run of a training that asks for a protocol."""
    words = ["evaluate.protocol=dense", "evaluate.scales=[20,24]", "evaluate.batch=77"]
    run: Path = train("run", "min_steps=2", *words)
    return run


def test_a_training_writes_its_protocol_s_results_beside_its_own(run: Path) -> None:
    whole = json.loads((run / "evaluation/summary.json").read_text())
    assert whole["protocol"] == {
        "name": "single",
        "scales": [None],
        "flips": False,
        "views": 1,
        "text": "its centre, at its own size",
    }
    folder = run / "evaluations/dense-20-24"
    dense = json.loads((folder / "evaluation/summary.json").read_text())
    assert dense["protocol"]["views"] == 4 and dense["protocol"]["flips"]  # augment.flip is true
    assert dense["protocol"]["text"] == "all of it, densely, at 20 pixels, 24 pixels, mirrored too"
    assert dense["loss"] != whole["loss"] and dense["images"] == whole["images"] == 40
    assert dense["protocol"]["text"] in (folder / "report/index.html").read_text()
    assert "Seen of each image" in (run / "report/index.html").read_text()


def test_any_number_of_ranks_writes_the_same_and_leaves_the_run_s_own_evaluation(run: Path, tmp_path: Path) -> None:
    before = (run / "evaluation/summary.json").read_bytes(), (run / "evaluation/predictions.npz").read_bytes()
    words = [str(run), "evaluate.protocol=dense+multicrop", "evaluate.scales=[20]", "evaluate.flips=false"]
    written = []
    for size in (1, 2, 3):
        ranks = start("vgg_ddp.evaluate", words, size, tmp_path / str(size))
        assert ranks.wait() == [0] * size, ranks.stderr
        assert "seen of each image: all of it, densely and 5 x 5 crops, at 20 pixels\n" in ranks.stdout
        folder = run / "evaluations/dense+multicrop-20-no-flips/evaluation"
        summary = json.loads((folder / "summary.json").read_text())
        assert summary.pop("world_size") == size
        with np.load(folder / "predictions.npz") as arrays:
            written.append((summary, {name: array.tobytes() for name, array in arrays.items()}))
    assert written[0] == written[1] == written[2]
    assert written[0][0]["protocol"]["views"] == 26
    after = (run / "evaluation/summary.json").read_bytes(), (run / "evaluation/predictions.npz").read_bytes()
    assert after == before


def test_one_word_asks_for_a_protocol(run: Path) -> None:
    done = vgg_ddp("evaluate", run.name, "--protocol", "dense", "evaluate.scales=[]", folder=run.parent)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "evaluations/dense/evaluation/summary.json").read_text())["protocol"]["views"] == 2
    done = vgg_ddp("evaluate", run.name, "--protocol", "thorough", folder=run.parent)
    assert done.returncode == 2
    assert "key 'evaluate.protocol'" in done.stderr and "choose one of single, shifted, dense, multicrop" in done.stderr
    done = vgg_ddp("evaluate", run.name, run.name, "--images", ".", folder=run.parent)
    assert (done.returncode, "leave out further runs" in done.stderr) == (2, True)


@pytest.fixture(scope="module")
def other(train: Any) -> Path:
    """A run of the same training with other weights."""
    run: Path = train("other", "min_steps=2", "seed=1", "model.batch_norm=false")
    return run


def stored(folder: Path) -> dict[str, Any]:
    with np.load(folder / "evaluation/predictions.npz") as arrays:
        return dict(arrays)


def test_networks_that_answer_together_answer_with_the_mean_of_their_soft_max(run: Path, other: Path) -> None:
    before = (run / "evaluation/summary.json").read_bytes()
    words = [
        run.name,
        other.name,
        "evaluate.scales=[]",
        "--protocol",
        "dense",
        "--out",
        "both",
        "analysis.budget=small",
    ]
    done = vgg_ddp("evaluate", *words, folder=run.parent)
    assert done.returncode == 0, done.stderr
    assert "by the average of 2 networks" in done.stdout
    both, (one, two) = (
        run.parent / "both",
        (stored(folder) for folder in sorted((run.parent / "both/members").iterdir())),
    )
    found = stored(both)
    np.testing.assert_allclose(found["probabilities"], (one["probabilities"] + two["probabilities"]) / 2, atol=1e-6)
    assert np.array_equal(found["prediction"], found["probabilities"].argmax(axis=1))
    summary = json.loads((both / "evaluation/summary.json").read_text())
    assert summary["accuracy"] == (found["prediction"] == found["label"]).mean()
    assert summary["why"]["budget"] == "small"
    assert [member["run"] for member in summary["members"]] == [run.name, other.name]
    assert [member["protocol"]["name"] for member in summary["members"]] == ["dense", "dense"]
    assert "vgg_tiny + vgg_tiny" in (both / "report/index.html").read_text()
    assert (run / "evaluation/summary.json").read_bytes() == before

    done = vgg_ddp("table", run.name, other.name, "both", "--format", "csv", folder=run.parent)
    assert done.returncode == 0, done.stderr
    header, *rows = csv.reader(done.stdout.splitlines())
    assert header == COLUMNS
    by = {(row[0], row[3], row[4]): row for row in rows}
    assert by["run", "32", "single"][1:3] == ["vgg_tiny_bn", "32"] and by["other", "32", "single"][1] == "vgg_tiny"
    assert by["run", "20,24", "dense"][5] == f"{100 * (1 - summary_of(run, 'dense-20-24')['accuracy']):.2f}"
    assert by["both", "–", "dense"][1] == "2 networks"
    assert by["both", "–", "dense"][5] == f"{100 * (1 - summary['accuracy']):.2f}"
    assert by["both", "–", "dense"][6] == f"{100 * (1 - summary['top5_accuracy']):.2f}"
    done = vgg_ddp("table", run.name, "both", folder=run.parent)
    assert all(by["both", "–", "dense"][k] in done.stdout for k in (1, 4, 5, 6)), done.stdout
    done = vgg_ddp("table", run.name, "--format", "markdown", folder=run.parent)
    assert done.stdout.splitlines()[1] == "| --- | --- | --- | --- | --- | ---: | ---: |"
    done = vgg_ddp("table", str(run / "checkpoints"), folder=run.parent)
    assert (done.returncode, "has no evaluation; run: vgg-ddp evaluate" in done.stderr) == (2, True)


def summary_of(run: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "evaluations" / name / "evaluation/summary.json").read_text())
    return found


def asked(run: Path, dataset: Path) -> ResolvedRun:
    return ResolvedRun(
        config=Config(), run=str(run), dataset=str(dataset), trackers={}, fallbacks=[], choices=[], command=""
    )


def test_networks_that_cannot_answer_together_are_refused_by_name(
    run: Path, other: Path, digits: Path, few_digits: Path
) -> None:
    done = vgg_ddp("evaluate", run.name, other.name, folder=run.parent)
    assert (done.returncode, "name it with --out FOLDER" in done.stderr) == (2, True)
    assert common_test_set([asked(run, few_digits), asked(other, few_digits)]).sha256 == Dataset(few_digits).sha256
    with pytest.raises(
        UserError, match=r"run and \S*other cannot answer together: the one is tested on \S*few, the other"
    ):
        common_test_set([asked(run, few_digits), asked(other, digits)])
    record = read_record(other / "data.json")
    assert record is not None
    turned = run.parent / "turned"
    turned.mkdir()
    (turned / "data.json").write_bytes(encoded(msgspec.structs.replace(record, classes=record.classes[::-1])))
    with pytest.raises(UserError, match="tells apart 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, the other 9, 8, 7, 6"):
        common_test_set([asked(run, few_digits), asked(turned, few_digits)])
