"""The benchmarks run and write what they promise."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measurement.flops import layers
from benchmarks.measurement.two_hosts import why_not
from tests.support.rank_processes import program
from vgg_ddp.model.network import vgg

pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parents[2]


def run(name: str, *options: object) -> tuple[str, list[dict[str, Any]]]:
    """A benchmark's output and rows; the file has what every benchmark writes."""
    done = program(f"benchmarks.{name}", *map(str, options), folder=ROOT)
    assert done.returncode == 0, done.stderr
    written = json.loads(Path(options[options.index("--json") + 1]).read_text())  # type: ignore[arg-type]
    assert set(written) == {"machine", "command", "rows"}
    assert written["command"].startswith(f"python -m benchmarks.{name}")
    assert {"devices", "threads", "torch", "date"} <= set(written["machine"])
    return done.stdout, written["rows"]


def test_throughput_has_a_row_a_cell_the_plain_loop_and_the_peak(tmp_path: Path) -> None:
    cells = [
        "--networks",
        "vgg11",
        "--batches",
        2,
        "--precisions",
        "tf32",
        "fp32",
        "--steps",
        1,
        "--rounds",
        1,
        "--threads",
        1,
    ]
    files = ["--json", tmp_path / "out.json", "--roofline", tmp_path / "roof.png", "--profile", tmp_path / "profile"]
    output, rows = run("throughput", *cells, "--data", "digits", *files)
    by_name = {row["name"]: row for row in rows}
    cell = by_name["vgg11 32px 2 tf32 channels_last"]
    assert set(by_name) == {
        "vgg11 32px 2 tf32 channels_last",
        "vgg11 32px 2 tf32 channels_last from auto",
        "vgg11 32px 2 fp32 channels_last",
        "vgg11 32px 2 fp32 channels_last from auto",
        "plain vgg11 32px 2 fp32",
        "matrix product tf32",
        "matrix product fp32",
        "copy",
    }
    assert 0 < cell["least"] <= cell["images_per_second"] <= cell["most"]
    assert f"{cell['images_per_second']:.1f}" in output
    assert set(cell["seconds"]) == {"data_wait", "forward", "backward", "update"}
    assert min(cell["seconds"].values()) >= 0
    assert cell["seconds"]["forward"] > 0 < cell["seconds"]["backward"]
    flop_per_second = cell["mfu"] * by_name["matrix product tf32"]["flop_per_second"]
    assert flop_per_second / cell["images_per_second"] == pytest.approx(6 * 0.153e9, rel=0.02)
    assert (tmp_path / "roof.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]


@pytest.mark.parametrize(("name", "gmac"), [("A", 0.153), ("D", 0.314)])
def test_the_arithmetic_of_a_network_is_counted_from_its_definition(name: str, gmac: float) -> None:
    """Multiply-adds of one forward pass at 32 pixels: known figures of VGG-11 and VGG-16 with a 512 to 10 head."""
    network = vgg(name, True, "compact", 10, 32)
    counted = layers(network, 32)
    first = 2 * 32 * 32 * 64 * 27
    assert (sum(layer.training_flops for layer in counted) + first) / 6 == pytest.approx(gmac * 1e9, rel=0.01)
    by_hand = sum(
        2 * 3 * shape[0] * 9 * shape[1] * shape[2] ** 2
        for shape in (
            [(128, 64, 16), (256, 128, 8), (256, 256, 8), (512, 256, 4), (512, 512, 4), (512, 512, 2), (512, 512, 2)]
        )
    )
    if name == "A":
        assert sum(layer.training_flops for layer in counted) == by_hand + 2 * first + 6 * 5120


def test_a_benchmark_takes_an_earlier_run_of_itself(digits: Path, tmp_path: Path) -> None:
    """The verdict compares the row that both runs have."""
    keys = ["network=vgg_tiny", "data.image_size=16", f"data.source={digits}", "batch=16"]
    first = tmp_path / "first.json"
    options = ["--steps", 2, "--rounds", 2, "--threads", 1, "--config", ROOT / "configs" / "vgg16_cifar10.yaml"]
    _, rows = run("overhead", *keys, *options, "--json", first)
    (row,) = rows
    seconds = row["seconds"]
    engine = sum(seconds[f"engine.{name}"] for name in ("forward", "backward", "step"))
    assert 0 < seconds["data_wait"] < seconds["step"] - engine
    assert 0 < row["overhead"] < 1
    assert first.with_suffix(".png").stat().st_size > 5_000
    output, _ = run("overhead", *keys, *options, "--json", tmp_path / "second.json", "--baseline", first)
    assert "against the baseline" in output
    assert output.splitlines()[-1].split()[-1] in ("faster", "slower", "noise")


def namespaces_left() -> set[str]:
    """Network namespaces that ended benchmarks have left behind."""
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.split()
    return {name for name in names if name.startswith("vgg-ddp-") and not Path("/proc", name.split("-")[2]).exists()}


def test_communication_measures_two_hosts_trains_and_leaves_none_behind(digits: Path, tmp_path: Path) -> None:
    lacking = why_not()
    if lacking:
        pytest.skip(lacking)
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two ranks need two cores")
    file = tmp_path / "out.json"
    small = ["--network", "vgg_tiny", "--image-size", 16, "--batch", 8, "--steps", 2, "--rounds", 1, "--json", file]
    choices = ["--heads", "compact", "--links", 1000, "--choices", "plain", "local SGD 16"]
    before = namespaces_left()
    output, (alone, plain, local) = run("communication", *choices, *small)
    assert namespaces_left() <= before
    parameters = 1_973_186 * 4 / 1e6  # MB, as float32
    assert (alone["choice"], alone["efficiency"], alone["megabytes_per_step"]) == ("one rank", 1.0, 0.0)
    assert parameters < plain["megabytes_per_step"] < 1.1 * parameters  # each rank sends its half twice
    assert parameters / 2 / 16 < local["megabytes_per_step"] < 1.2 * parameters / 2 / 16
    assert local["synchronise_seconds"] > parameters / 2 * 8 / 1000 * 0.9  # at 1 Gbit/s
    assert f"{plain['images_per_second']:.1f} images/s" in output

    training = ["--train", digits, "--train-steps", 16, "--loss", 9, "--seeds", 0, "--choices", "bf16"]
    _, rows = run("communication", *training, "--json", file)
    assert [row["name"] for row in rows[:3]] == [row["name"] for row in (alone, plain, local)]  # kept
    (trained,) = rows[3:]
    assert (trained["choice"], trained["seed"]) == ("bf16", 0)
    assert trained["steps_to_loss"] == trained["losses"][0][0] <= 16 and 0 < trained["test_accuracy"] < 1
    shown = program("benchmarks.communication", "--show", str(file), folder=ROOT).stdout
    assert f"| plain | {plain['efficiency']:.2f} (" in shown
    assert f"| bf16 | {trained['steps_to_loss']} | {trained['test_accuracy']:.2%} |" in shown
    assert file.with_suffix(".png").stat().st_size > 10_000


def test_loaders_has_a_row_a_loader_and_storage(tmp_path: Path) -> None:
    options = ["--data", "digits", "--photos", 0, "--batch", 64, "--seconds", 0.1, "--rounds", 1, "--threads", 1]
    output, rows = run("loaders", *options, "--json", tmp_path / "out.json")
    assert [row["name"] for row in rows] == ["synthetic raw", "resident raw", "dali raw", "torch raw"]
    for row in rows:
        assert row["images_per_second"] > 0
        assert row["first_batch_seconds"] > 0
        assert row["name"] in output


def test_engines_take_turns_on_the_same_step(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    options = ["--network", "vgg_tiny", "--batch", 8, "--stages", 1, "--steps", 1, "--rounds", 1]
    output, rows = run("engines", *options, "--json", tmp_path / "out.json")
    assert [row["engine"] for row in rows] == ["ddp", "deepspeed 1"]
    assert rows[0]["to_ddp"] == 1
    for row in rows:
        assert 0 < row["least"] <= row["images_per_second"] <= row["most"]
        assert f"{row['images_per_second']:.1f}" in output
    assert rows[1]["to_ddp"] == pytest.approx(rows[1]["images_per_second"] / rows[0]["images_per_second"])


def test_tracking_measures_both_sides(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed")
    options = ["--batch", 8, "--steps", 13, "--rounds", 1, "--threads", 1, "--json", tmp_path / "out.json"]
    output, rows = run("tracking", *options)
    assert [row["name"] for row in rows] == ["wandb disabled", "wandb online, no answer"]
    for row in rows:
        assert row["steps"] == 3
        assert 0 < row["least"] <= row["step_seconds"] <= row["most"]
    assert "ratio" in output
