"""What the ways of talking do to the result: steps to a training loss, and test accuracy. Two ranks, no link between."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.communication.choices import CHOICES

NETWORK, IMAGE_SIZE = "vgg11", 16
LOGGED = 16  # steps of a training whose mean loss is looked at


def train(options: argparse.Namespace, cores: list[int]) -> list[dict[str, Any]]:
    """One row for each way and seed: steps to the loss, and the test accuracy at the end. Two ranks, no link between."""
    found = []
    for seed in options.seeds:
        for name in options.choices:
            if "split_head" in CHOICES[name]:  # the same steps as without it
                continue
            with tempfile.TemporaryDirectory() as folder:
                run = Path(folder) / "run"
                words = [
                    *training_words(options),
                    f"run.dir={run}",
                    f"seed={seed}",
                    *communication_words(name, options),
                ]
                command = [sys.executable, "-m", "vgg_ddp", "train", *words]
                pinned = {"preexec_fn": lambda: os.sched_setaffinity(0, cores)}
                subprocess.run(command, check=True, capture_output=True, **pinned)  # type: ignore[call-overload]
                losses = [
                    row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
                    if row["scope"] == "steps"
                ]  # fmt: skip
                accuracy = json.loads((run / "evaluation/summary.json").read_text())["accuracy"]
            reached = [row["step"] for row in losses if row["loss"] < options.loss]
            row = {
                "name": f"{NETWORK} {IMAGE_SIZE}px training {name}, seed {seed}",
                "part": "training",
                "network": NETWORK,
                "image_size": IMAGE_SIZE,
                "choice": name,
                "seed": seed,
                "steps": options.train_steps,
                "loss": options.loss,
                "steps_to_loss": reached[0] if reached else None,
                "losses": [[row["step"], round(row["loss"], 4)] for row in losses],
                "test_accuracy": accuracy,
            }
            print(f"  {json.dumps(row)}", file=sys.stderr, flush=True)
            found.append(row)
    return found


def training_words(options: argparse.Namespace) -> list[str]:
    """VGG-11 on images of 16 pixels, in the quickstart's recipe."""
    return [
        "configs/quickstart.yaml",
        f"network={NETWORK}",
        f"data.source={options.train}",
        "data.train_sizes=[]",
        f"data.image_size={IMAGE_SIZE}",
        "nproc=2",
        "threads=1",
        "epochs=1e-9",
        f"min_steps={options.train_steps}",
        f"log.every_steps={LOGGED}",
    ]


def communication_words(name: str, options: argparse.Namespace) -> list[str]:
    """The configuration of a way; PowerSGD begins after a tenth of the steps."""
    keys = dict(CHOICES[name])
    if "powersgd_warmup_steps" in keys:
        keys["powersgd_warmup_steps"] = options.train_steps // 10
    return [f"communication.{key}={value}" for key, value in keys.items()]
