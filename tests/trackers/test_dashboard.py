"""The dashboard's definition and the example sweep, checked without an account."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from vgg_ddp.config import load
from vgg_ddp.run.metrics_log import read_metrics
from vgg_ddp.trackers import dashboard

ROOT = Path(__file__).resolve().parents[2]
SWEEP = ROOT / "configs/wandb/sweep.yaml"


def vgg_ddp(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment["NETRC"] = str(folder / "netrc")
    command = [sys.executable, "-m", "vgg_ddp", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def test_a_dry_run_prints_every_panel(tmp_path: Path) -> None:
    done = vgg_ddp("dashboard", "--dry-run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for section in dashboard.definition().sections:
        assert section.title in done.stdout.splitlines()
        for panel in section.panels:
            assert f"  {panel.title}: " in done.stdout


def test_without_a_login_it_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed")
    done = vgg_ddp("dashboard", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "wandb login" in line


@pytest.mark.filterwarnings("ignore:Pydantic V1:DeprecationWarning")  # of its own use of pydantic
def test_wandb_workspaces_takes_the_definition() -> None:
    """Every panel arrives in the form that W&B stores, with its metrics."""
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed")
    definition = dashboard.definition()
    model = dashboard.workspace(definition, "project", "somebody")._to_model().model_dump(by_alias=True)
    stored = model["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in stored] == [section.title for section in definition.sections]
    for section, panels in zip(definition.sections, (section["panels"] for section in stored)):
        assert len(panels) == len(section.panels)
        for panel, written in zip(section.panels, panels):
            text = json.dumps(written)
            fields = msgspec.structs.asdict(panel).values()
            names = [name for field in fields for name in (field if isinstance(field, list) else [])]
            assert all(f'"{name}"' in text for name in names), panel


def sweep_command(values: dict[str, Any]) -> list[str]:
    """The command that W&B's agent builds from the example for one choice of values."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils", reason="W&B is not installed")
    sweep = yaml.safe_load(SWEEP.read_text())
    command = utils.create_sweep_command(sweep["command"])
    words = utils.create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    at = command.index("${args_no_hyphens}")
    return [*command[:at], *words["args_no_hyphens"], *command[at + 1 :]]


def values_at(end: int) -> dict[str, Any]:
    """The first or the last value of every parameter of the example."""
    parameters = yaml.safe_load(SWEEP.read_text())["parameters"]
    return {name: p["values"][end] if "values" in p else (p["min"], p["max"])[end] for name, p in parameters.items()}


@pytest.mark.seconds
@pytest.mark.parametrize("end", [0, -1])
def test_every_parameter_of_the_sweep_is_a_key(end: int) -> None:
    given = values_at(end)
    config = load(ROOT / "configs/vgg11_short.yaml", [word for word in sweep_command(given) if "=" in word.split()[0]])
    for key, value in given.items():
        group, name = key.split(".")
        assert getattr(getattr(config, group), name) == value


@pytest.mark.processes
def test_a_run_of_the_sweep_trains(tmp_path: Path) -> None:
    """The agent's command and variables, offline, on few digits. The sweep's metric is logged."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    small = [
        "data.source=digits",
        "batch=32",
        "device=cpu",
        "nproc=1",
        "min_steps=2",
        "epochs=0.01",
        "tracking.wandb=offline",
        "analysis.budget=none",
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "WANDB_RUN_ID": "sweep123", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*sweep_command(values_at(0)), *small],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/sweep/sweep123"
    assert json.loads((run / "tracking/wandb.json").read_text())["run_id"] == "sweep123"
    metric = yaml.safe_load(SWEEP.read_text())["metric"]["name"]
    assert any(f"{row['split']}/accuracy" == metric for row in read_metrics(run / "metrics.jsonl"))
