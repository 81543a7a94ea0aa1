"""Seconds of a training step with W&B online and its network black-holed, against those with W&B disabled.

    python -m benchmarks.tracking [--steps 60] [--rounds 5] [--source digits] [--json FILE]

W&B is pointed at a local server that accepts connections and never answers. A round is one whole training of each side,
alternately, so that other load on the machine affects both; each writes a row of metrics every step. A step's seconds
are those between its row and the one before it, the writing of a row included. The first steps of a training do not
count, nor do those with a validation or the end of an epoch between their rows.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from benchmarks.measurement import command, rounds
from vgg_ddp.errors import UserError
from vgg_ddp.run.metrics_log import read_metrics

ROOT = Path(__file__).resolve().parents[1]
STEPS_OF_WARM_UP = 10
SIDES = {"disabled": "disabled", "online, no answer": "online"}


def black_hole() -> str:
    """The address of a server that accepts connections, reads nothing and never answers."""
    server = socket.create_server(("127.0.0.1", 0), backlog=128)
    held: list[socket.socket] = []

    def accept() -> None:
        while True:
            held.append(server.accept()[0])

    threading.Thread(target=accept, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}"


def step_seconds(mode: str, folder: Path, options: argparse.Namespace, address: str) -> list[float]:
    """Train once; the seconds of each step that counts."""
    overrides = [
        f"run.dir={folder}",
        f"data.source={options.source}",
        f"data.directory={folder.parent}",
        "data.train_sizes=[]",
        "epochs=0.001",
        f"min_steps={options.steps}",
        f"batch={options.batch}",
        f"threads={options.threads}",
        "nproc=1",
        "log.every_steps=1",
        f"tracking.wandb={mode}",
        "tracking.finish_seconds=0",
        "analysis.budget=none",
    ]
    train = [sys.executable, "-m", "vgg_ddp", "train", str(ROOT / "configs" / "vgg11_short.yaml"), *overrides]
    environment = {**os.environ, "WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40}
    subprocess.run(train, env=environment, check=True, stdout=subprocess.DEVNULL)
    return between_rows(read_metrics(folder / "metrics.jsonl"))


def between_rows(rows: list[dict[str, Any]]) -> list[float]:
    """The seconds from row to row of steps that follow one another, without the first steps."""
    return [
        after["seconds"] - before["seconds"]
        for before, after in itertools.pairwise(rows)
        if before["scope"] == after["scope"] == "steps" and after["step"] > STEPS_OF_WARM_UP
    ]


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each side: the median of the rounds' median steps."""
    address = black_hole()
    seconds: dict[str, list[list[float]]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as place:
        for number in range(options.rounds):
            names = list(SIDES) if number % 2 == 0 else list(reversed(SIDES))
            for name in names:
                folder = Path(place) / f"{number} {SIDES[name]}"
                seconds[name].append(step_seconds(SIDES[name], folder, options, address))
    return [
        {
            "name": f"wandb {name}",
            "batch": options.batch,
            "steps": sum(len(each) for each in trainings),
            "mean": statistics.mean([s for each in trainings for s in each]),
            **rounds.summary([statistics.median(each) for each in trainings], "step_seconds", higher_is_better=False),
        }
        for name, trainings in seconds.items()
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """Print a line for each side, and the ratio."""
    for row in rows:
        print(f"{row['name']:<24} {row['step_seconds']:.4f} s a step  ({row['least']:.4f} to {row['most']:.4f})")
    print(f"ratio {rows[1]['step_seconds'] / rows[0]['step_seconds']:.4f}")


def main() -> None:
    """Measure, print and keep the rows."""
    parser = command.parser("tracking", __doc__)
    parser.add_argument("--source", default="digits", help="data.source (default: digits)")
    parser.add_argument("--batch", type=command.count, default=256, help="images in a step (default: 256)")
    parser.add_argument("--steps", type=command.count, default=60, help="steps of a training (default: 60)")
    options = parser.parse_args()
    if options.steps <= STEPS_OF_WARM_UP:
        raise UserError(f"--steps {options.steps}: give more than {STEPS_OF_WARM_UP}, which are warm-up")
    rows = measure(options)
    show(rows)
    command.keep(options, rows, "step_seconds", "seconds of a step")


if __name__ == "__main__":
    command.run(main)
