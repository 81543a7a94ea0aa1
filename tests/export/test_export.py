"""An exported network answers as the original does, says what it is, and is whole or absent."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from numpy.typing import NDArray
from safetensors import safe_open

from tests.support.rank_processes import Train, program
from vgg_ddp.config import load
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.errors import UserError
from vgg_ddp.export import check, export, formats
from vgg_ddp.export.card import shown
from vgg_ddp.model.network import vgg
from vgg_ddp.run.files import file_sha256

SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx", "torch-export": ".pt2"}


@pytest.fixture(scope="module")
def run(train: Train, digits: Path) -> Iterator[Path]:
    """A run of some steps on all digits, enough to learn many of them."""
    words = (
        "min_steps=24",
        "batch=32",
        "data.image_size=32",
        f"data.source={digits}",
    )
    run = train("exported", *words)
    assert json.loads((run / "evaluation/summary.json").read_text())["accuracy"] > 0.5
    yield run
    shutil.rmtree(run)


@pytest.fixture(scope="module")
def exports(run: Path) -> dict[str, tuple[Path, str]]:
    """The file of each format, and the card that came with it."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    done = {}
    for name in SUFFIXES:
        result = export(run, name, None, [])
        done[name] = result.path, result.card.read_text()
    return done


@pytest.fixture(scope="module")
def exported(exports: dict[str, tuple[Path, str]]) -> dict[str, Path]:
    return {name: path for name, (path, _) in exports.items()}


@pytest.fixture(scope="module")
def images(digits: Path) -> NDArray[np.uint8]:
    """300 images that it was not trained on."""
    return np.load(digits / "test.images.npy")[:300]


@pytest.fixture(scope="module")
def expected(run: Path, digits: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The logits of the checkpoint's network in fp32, put together here from its weights and the data's statistics."""
    config, record = load(run / "config.yaml"), Dataset(digits).record
    folder = run / "checkpoints" / (run / "checkpoints/latest").read_text()
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    network = vgg(config.network, config.model.batch_norm, config.model.head, 10, 32).eval()
    network.load_state_dict(weights)
    pixels = (images.astype(np.float32) - np.float32(record.mean)) / np.float32(record.std)
    with torch.no_grad():
        return network(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()).numpy()


def assert_same(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert np.array_equal(found.argmax(1), expected.argmax(1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_onnx_answers_as_the_original(exported: Any, images: NDArray[np.uint8], expected: NDArray[np.float32]) -> None:
    import onnx
    import onnxruntime

    onnx.checker.check_model(onnx.load(exported["onnx"]), full_check=True)
    session = onnxruntime.InferenceSession(exported["onnx"], providers=["CPUExecutionProvider"])
    assert_same(session.run(None, {"images": images})[0], expected)
    assert_same(session.run(None, {"images": images[:1]})[0], expected[:1])


def test_the_exported_program_answers_as_the_original(
    exported: Any, images: NDArray[np.uint8], expected: NDArray[np.float32]
) -> None:
    classifier = torch.export.load(exported["torch-export"]).module()
    for count in (1, len(images)):
        assert_same(classifier(torch.from_numpy(images[:count])).detach().numpy(), expected[:count])


def test_safetensors_are_the_checkpoints_weights(run: Path, exported: Any) -> None:
    folder = run / "checkpoints" / (run / "checkpoints/latest").read_text()
    with safe_open(exported["safetensors"], "pt") as ours, safe_open(folder / "model.safetensors", "pt") as theirs:
        assert set(ours.keys()) == set(theirs.keys())
        assert all(torch.equal(ours.get_tensor(name), theirs.get_tensor(name)) for name in ours.keys())  # noqa: SIM118


def test_each_file_says_what_it_is(exported: Any, digits: Path) -> None:
    import onnx

    record = Dataset(digits).record
    about: dict[str, dict[str, str]] = {"torch-export": {"labels": "", "mean": "", "std": "", "dataset_sha256": ""}}
    torch.export.load(exported["torch-export"], extra_files=about["torch-export"])
    about["onnx"] = {entry.key: entry.value for entry in onnx.load(exported["onnx"]).metadata_props}
    with safe_open(exported["safetensors"], framework="pt") as file:
        about["safetensors"] = file.metadata()
    for metadata in about.values():
        assert json.loads(metadata["labels"]) == record.classes
        assert json.loads(metadata["mean"]) == record.mean
        assert json.loads(metadata["std"]) == record.std
        assert json.loads(metadata["dataset_sha256"]) == Dataset(digits).sha256


@pytest.mark.parametrize("name", SUFFIXES)
def test_the_cards_example_runs_beside_the_file(name: str, exports: Any, digits: Path) -> None:
    path, card = exports[name]
    assert file_sha256(path) in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    (path.parent / "example.py").write_text(code)
    done = program("example", folder=path.parent)
    (path.parent / "example.py").unlink()
    shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
    assert done.stdout.strip() in Dataset(digits).classes, done.stderr


def test_the_card_holds_the_runs_figures(run: Path, exported: Any) -> None:
    html = MarkdownIt("commonmark").enable("table").render((run / "model_card.md").read_text())
    evaluation = json.loads((run / "evaluation/summary.json").read_text())
    assert f"Accuracy {100 * evaluation['accuracy']:.2f} %" in html
    for row in evaluation["per_class"]:
        assert re.search(
            rf"<td>{row['name']}</td>\s*<td[^>]*>{row['images']}</td>\s*<td[^>]*>{row['accuracy']:.3f}<", html
        )
    worst = evaluation["worst"]
    assert (f"worst at {worst[0]}" in html) if worst else ("worst at" not in html)


@pytest.mark.parametrize(
    "name",
    ["<script>alert(1)</script>", "a|b", "*cat*", "[x](http://x)", "`tick`", "two\nlines", "\u202eright", "&lt;", "\\"],
)
def test_a_hostile_name_is_shown_as_text(name: str) -> None:
    html = MarkdownIt("commonmark").enable("table").render(f"| class |\n| --- |\n| {shown(name)} |\n")
    (cell,) = re.findall(r"<td>(.*?)</td>", html, re.DOTALL)
    assert "<" not in cell
    import html as entities

    assert entities.unescape(cell) == name.replace("\n", " ").replace("\u202e", "").strip()


def test_what_answers_otherwise_is_not_put_in_place(run: Path, exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that corrupts a weight is caught; the file that was there before stays."""
    before = file_sha256(exported["safetensors"])

    def spoiled(path: Path, classifier: formats.Classifier, contents: formats.Contents) -> None:
        with torch.no_grad():
            next(classifier.network.parameters())[0] += 1.0
        formats.write_safetensors(path, classifier, contents)
        with torch.no_grad():
            next(classifier.network.parameters())[0] -= 1.0

    form = formats.Format(".safetensors", spoiled, formats.safetensors_answers)
    monkeypatch.setitem(formats.FORMATS, "safetensors", form)
    with pytest.raises(RuntimeError, match="does not answer as the original"):
        export(run, "safetensors", None, [])
    assert file_sha256(exported["safetensors"]) == before
    assert {path.name for path in (run / "export").iterdir()} == {f"model{suffix}" for suffix in SUFFIXES.values()}


def test_the_check_sees_small_differences() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    assert check(logits + 1e-5, logits) == pytest.approx(1e-5, rel=0.1)
    for wrong in (logits + 1e-3, logits.flip(1), logits * float("nan")):
        with pytest.raises(RuntimeError):
            check(wrong, logits)


def test_whoever_may_read_the_folder_may_read_the_file(exported: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    assert {path.stat().st_mode for path in exported.values()} == {(tmp_path / "plain").stat().st_mode}


def test_mistakes_get_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.onnx"):
        export(run, "onnx", tmp_path / "model.pb", [])
    with pytest.raises(UserError, match="neither a run directory"):
        export(tmp_path, "onnx", None, [])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export(run, "safetensors", tmp_path / "file/model.safetensors", [])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_another_dataset_than_the_networks_is_refused(run: Path, few_digits: Path) -> None:
    with pytest.raises(UserError, match="was trained on other data"):
        export(run, "safetensors", None, [f"data.source={few_digits}"])
