"""What the network itself is asked: occlusion, changed pictures, features; and attribute and label files."""

from __future__ import annotations

import copy
import io
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam, Occlusion
from torch import nn
from torchvision.models import vgg11

import vgg_ddp
from tests.support.rank_processes import CPU, Ranks, Train
from tests.support.runs import make_dataset
from vgg_ddp.analysis.predictions import Predictions
from vgg_ddp.config import Config, load
from vgg_ddp.config.analysis import AnalysisConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.order import evaluation_slices
from vgg_ddp.data.record import FileRecord, SplitRecord, encoded
from vgg_ddp.data.validation import held_out
from vgg_ddp.distributed.world import ALONE, joined
from vgg_ddp.errors import UserError
from vgg_ddp.evaluation import attributes, features, occlusion
from vgg_ddp.evaluation.changes import CHANGES
from vgg_ddp.evaluation.why import Answered, Search
from vgg_ddp.model import fusion, vgg
from vgg_ddp.run.files import file_sha256


def test_hidden_parts_are_captum_s_occlusion() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 12 * 12, 3)).eval()
    image = torch.randn(3, 14, 14)  # whose side is not a multiple of the step
    reference = Occlusion(network).attribute(image[None], (3, 4, 4), (3, 3, 3), baselines=0.0, target=1)[0]
    found = occlusion.occlusion(network, image, 1, 4, 3)
    torch.testing.assert_close(found.expand(3, 14, 14), reference.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.seconds
def test_grad_cam_is_captum_s_on_torchvision_s_network() -> None:
    torch.manual_seed(0)
    theirs = vgg11(num_classes=5).eval()
    ours = vgg("A", num_classes=5, image_size=224).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values())))
    for module in theirs.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # which Captum's hooks do not go with
    image = torch.randn(3, 224, 224)
    expected = LayerGradCam(theirs, theirs.features[19]).attribute(image[None], 3, relu_attributions=True)[0, 0]
    found = occlusion.grad_cam(ours, image, 3)
    assert found is not None and found.shape == (14, 14)
    torch.testing.assert_close(found, expected.detach(), atol=1e-4, rtol=1e-3)
    assert (
        occlusion.grad_cam(vgg("A", head="compact", num_classes=5, image_size=32).eval(), image[:, :32, :32], 3) is None
    )


@pytest.mark.parametrize(
    ("variant", "maps"),
    [({"activation": "gelu", "pool_before_norm": True}, "Conv"), ({"activation": "gelu"}, "BatchNorm"), ({}, "ReLU")],
    ids=["pool before norm", "gelu", "relu"],
)
def test_grad_cam_is_captum_s_where_the_last_pool_stands_elsewhere_and_in_fused_layers(
    variant: dict[str, Any], maps: str
) -> None:
    """For the input maps of the last pool: those of the convolution, of its batch norm, or of the ReLU."""
    torch.manual_seed(0)
    network = vgg("A", True, "paper", 5, 64, **variant).eval()
    for norm in network.features:
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    image = torch.randn(3, 64, 64)
    plain = copy.deepcopy(network)
    pool = max(n for n, layer in enumerate(plain.features) if isinstance(layer, nn.MaxPool2d))
    if maps == "ReLU":  # in the reference, ReLU comes before the pool
        plain.features[pool], plain.features[pool + 1] = plain.features[pool + 1], plain.features[pool]
        pool += 1
    layer = plain.features[pool - 1]
    assert type(layer).__name__.startswith(maps)
    theirs = LayerGradCam(plain, layer)
    expected = [theirs.attribute(image[None], k, relu_attributions=True)[0, 0].detach() for k in range(5)]
    assert torch.stack(expected).any()
    for _ in ("plain", "fused"):
        found = [occlusion.grad_cam(network, image, k) for k in range(5)]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        fusion.fuse(network.features, Config(), torch.device("cuda"))


@pytest.mark.parametrize("side", [32, 30])
def test_each_change_changes_the_pictures_as_it_says_and_the_same_way_every_time(side: int) -> None:
    images = torch.randint(0, 256, (6, 3, side, side), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    fill = torch.tensor([10.0, 20.0, 30.0])
    before = images.clone()
    for name, change in CHANGES.items():
        changed = change(images, fill)
        assert changed.shape == images.shape and changed.dtype == torch.uint8
        assert torch.equal(images, before) and not torch.equal(changed, images), name
        assert torch.equal(change(images, fill), changed), name
    grey = CHANGES["grey"](images, fill)
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 1], grey[:, 2])
    assert torch.equal(CHANGES["mirrored"](images, fill).flip(3), images)
    assert torch.equal(CHANGES["upside down"](images, fill).flip(2), images)
    shuffled = CHANGES["shuffled"](images, fill)
    for one, other in zip(shuffled, images):  # the same squares in other places
        squares = [
            sorted(
                picture[:, y : y + side // 4, x : x + side // 4].flatten().tolist()
                for y in range(0, side // 4 * 4, side // 4)
                for x in range(0, side // 4 * 4, side // 4)
            )
            for picture in (one, other)
        ]
        assert squares[0] == squares[1]
    hidden, alone = (CHANGES[name](images, fill) for name in ("without the middle", "the middle alone"))
    of_images = hidden == images
    assert torch.equal(torch.where(of_images, hidden, alone), images)
    assert hidden[0, :, side // 2, side // 2].tolist() == [10, 20, 30] == alone[0, :, 0, 0].tolist()


def keep_on_ranks(output: Path) -> int:
    """As one of two ranks, in an evaluation that rank 0 continues alone."""
    with joined(devices=CPU) as world:
        world.activity.enter("evaluate")
        network = vgg("A", batch_norm=True, head="compact", num_classes=7, image_size=32)
        found = features.Kept(network, np.arange(4), 2, world).gathered()
        assert (found is not None) == world.is_main
        (output / str(world.rank)).write_text(repr(world.activity.seen().since))
    return 0


def test_who_waits_while_rank_0_looks_for_causes_is_not_taken_for_one_that_hangs(tmp_path: Path) -> None:
    ranks = Ranks(keep_on_ranks, (tmp_path,), 2, tmp_path / "output")
    assert ranks.wait() == [0, 0], ranks.stderr
    first, second = (float((tmp_path / str(rank)).read_text()) for rank in (0, 1))
    assert math.isfinite(first) and second == math.inf


def test_features_are_those_that_the_last_layer_multiplies() -> None:
    network = vgg("A", batch_norm=True, head="compact", num_classes=7, image_size=32).eval()
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    images, samples = torch.randn(10, 3, 32, 32), np.arange(100, 110)
    with torch.no_grad(), features.kept(network, samples, 4, ALONE) as kept:
        for piece in evaluation_slices(samples, 4):
            network(images[piece.samples - 100])
        found = kept.gathered()
        whole = network.features(images).flatten(1)
    assert found is not None and found.dtype == np.float16
    expected = nn.functional.normalize(whole, dim=1)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-3)
    assert not network.classifier[-1]._forward_pre_hooks


def test_what_is_left_out_keeps_the_name_of_its_budget() -> None:
    """No features are kept of images shown in several views, whatever the budget."""
    answers = Predictions(np.array([0, 1]), np.eye(2, dtype=np.float32), np.arange(2))
    for budget, reason in (("full", "shown once"), ("none", "analysis.budget=none")):
        config = Config(network="vgg11", analysis=AnalysisConfig(budget=budget))
        nothing: Any = None
        search = Search(config, nothing, nothing, nothing, ALONE, Answered(answers, None, np.arange(2)), {})
        found = search.describe(None)
        assert found["budget"] == budget and reason in found["left_out"][0] and found["map"] is None


def plant_copies(few_digits: Path, target: Path) -> list[int]:
    """The few digits with a copy of each test image in the training set, as the next class; the place of each copy."""
    target.mkdir()
    (images, labels), tested = (
        [np.load(few_digits / f"{split}.{kind}.npy") for kind in ("images", "labels")] for split in ("train", "test")
    )
    order = np.random.default_rng(0).permutation(len(labels) + len(tested[1]))
    trained = [
        np.concatenate([images, tested[0]])[order],
        np.concatenate([labels, (tested[1] + 1) % 10])[order],
    ]
    splits = {}
    for split, arrays in (("train", trained), ("test", tested)):
        files = []
        for kind, array in zip(("images", "labels"), arrays):
            path = target / f"{split}.{kind}.npy"
            np.save(path, array)
            files.append(FileRecord(path.name, path.stat().st_size, file_sha256(path)))
        splits[split] = SplitRecord(len(arrays[1]), np.bincount(arrays[1]).tolist(), files)
    (target / "dataset.json").write_bytes(encoded(msgspec.structs.replace(Dataset(few_digits).record, splits=splits)))
    return np.argsort(order)[len(labels) :].tolist()


def test_the_causes_of_a_run_are_those_of_its_network_and_its_images(
    train: Train, few_digits: Path, runs: Path
) -> None:
    """The nearest image is the copy, if that was trained on; reliance is checked with pictures flipped by NumPy."""
    copies = plant_copies(few_digits, runs / "copies")
    words = ["min_steps=40", "model.batch_norm=true", "optimizer.learning_rate=0.03", "augment.flip=false"]
    words += [f"data.source={runs / 'copies'}", "data.validation=0.25", "analysis.budget=full"]
    run, dataset = train("causes", *words), Dataset(runs / "copies")
    summary = json.loads((run / "evaluation/summary.json").read_text())

    trained_on = set(held_out(dataset, load(run / "config.yaml").data, 0)[0].tolist())
    nearest = {int(sample): near for sample, near in summary["why"]["neighbours"]["nearest"].items()}
    assert nearest.keys() == {*summary["surest_mistakes"], *summary["doubtful_labels"]["sample_index"]}
    assert len({copies[sample] in trained_on for sample in nearest}) == 2  # some are, some are not
    for sample, near in nearest.items():
        assert set(near) <= trained_on
        assert (near[0] == copies[sample]) == (copies[sample] in trained_on), sample

    split, classifier, relied_on = dataset.split("test"), vgg_ddp.load_network(run), summary["why"]["relied_on"]
    pictures = np.stack([split.decode(k)[8:24, 8:24] for k in range(len(split))])
    with np.load(run / "evaluation/why.npz") as arrays:
        shown = dict(zip(["unchanged", *CHANGES], arrays["changed_pictures"]))
    for name, changed in (("mirrored", pictures[:, :, ::-1]), ("upside down", pictures[:, ::-1])):
        with torch.no_grad():
            right = classifier(torch.from_numpy(changed.copy())).argmax(dim=1).numpy() == split.labels
        found = relied_on["changes"][name]
        assert found["accuracy"] == right.mean()
        assert found["difference"] == pytest.approx(right.mean() - summary["accuracy"])
        assert found["kinds"] == {digit: right[split.labels == int(digit)].mean() for digit in dataset.classes}
        assert np.array_equal(shown[name], changed[relied_on["example"]])


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> object:
    return make_dataset(tmp_path_factory.mktemp("few") / "data", np.arange(6) % 3, ["cat", "dog", "owl"])


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_attributes_are_matched_by_index_or_by_the_end_of_a_path(tmp_path: Path, few: object) -> None:
    split = few.split("test")  # type: ignore[attr-defined]
    by_index = write(tmp_path / "a.csv", "image,weather,size\n0,sun,1\n5,rain,2\n9,fog,3\n")
    columns, said = attributes.by_image(by_index, split)
    assert columns == {"weather": ["sun", "", "", "", "", "rain"], "size": ["1", "", "", "", "", "2"]}
    assert said == ["lines of no test image: 1, such as '9'", "test images without a line: 4"]
    by_name = write(tmp_path / "b.csv", f"\ufefffile,weather\n{split.key(2)},sun\n{split.key(3)},rain\n")
    assert attributes.by_image(by_name, split)[0] == {"weather": ["", "", "sun", "rain", "", ""]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("image\n1\n", "has no attribute"),
        ("image,a,a\n1,2,3\n", "two columns called 'a'"),
        ("image,a\n1,2\n3\n", "line 3: 1 cells, where the first line has 2"),
        ("image,a\n1,2\n1,3\n", "stands there a second time"),
        ("image,a\nx.png,2\n", "fits none of the 6 test images"),
        (b"\xff\xfe\x00", "cannot be read as CSV"),
        ('image,a\n1,"2\n', "cannot be read as CSV"),
    ],
)
def test_malformed_attributes_are_one_line(tmp_path: Path, few: object, content: str | bytes, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        attributes.by_image(write(tmp_path / "a.csv", content), few.split("test"))  # type: ignore[attr-defined]
    assert "\n" not in str(refused.value)


def test_labels_that_people_gave_come_as_counts_or_shares_csv_or_npy(tmp_path: Path) -> None:
    classes = ["cat", "dog", "owl"]
    counts = np.array([[3, 1, 0], [0, 0, 0], [1, 1, 2]])
    np.save(tmp_path / "a.npy", counts)
    named = write(tmp_path / "a.csv", "owl,cat,dog\n" + "".join(f"{c},{a},{b}\n" for a, b, c in counts))
    plain = write(tmp_path / "b.csv", "".join(f"{a / 4},{b / 4},{c / 4}\n" for a, b, c in counts))
    expected = np.array([[0.75, 0.25, 0], [0, 0, 0], [0.25, 0.25, 0.5]])
    for path in (tmp_path / "a.npy", named, plain):
        np.testing.assert_allclose(attributes.human_labels(path, classes, 3), expected)


def archive() -> bytes:
    """An archive of arrays, for a file named like a single array."""
    file = io.BytesIO()
    np.savez(file, np.ones((2, 3)))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "1,2\n3,4\n", "has 2 rows of 2, and there are 2 test images of 3 classes"),
        ("a.csv", "1,2,3\n4,5,x\n", "row 2: it needs 3 numbers"),
        ("a.csv", "a,b,c\n1,5,0,0\n2,0,5,0\n", "row 1: it needs 3 numbers"),  # with row numbers, as R writes them
        ("a.csv", "1,2,3\n4,5,-1\n", "the row of image 1 has a value that is no count"),
        ("a.csv", "1,2,3\n4,5,nan\n", "the row of image 1 has a value that is no count"),
        ("a.npy", b"\x93NUMPY\x01", "cannot be read as an array"),
        ("a.npy", archive(), "is no table of numbers"),
        ("b.csv", None, "is not a file"),
    ],
)
def test_malformed_labels_are_one_line(tmp_path: Path, name: str, content: str | bytes | None, said: str) -> None:
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(UserError, match=said) as refused:
        attributes.human_labels(tmp_path / name, ["a", "b", "c"], 2)
    assert "\n" not in str(refused.value)
