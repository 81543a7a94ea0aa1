"""The effect of each choice of communication on the result: steps to a training loss, and test accuracy."""

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
from vgg_ddp.errors import UserError
from vgg_ddp.run.metrics_log import read_metrics

NETWORK, IMAGE_SIZE = "vgg11", 16
LOG_EVERY = 16  # steps of a training: their mean loss is compared with the one to reach


def train(options: argparse.Namespace, cores: list[int]) -> list[dict[str, Any]]:
    """A row for each choice and seed, from trainings of two ranks on this host.

    Raises:
        UserError: a training did not end well; its own last line says why.
    """
    rows = []
    for seed in options.seeds:
        for name in options.choices:
            if "split_head" in CHOICES[name]:  # the same steps as without it
                continue
            with tempfile.TemporaryDirectory() as folder:
                run = Path(folder) / "run"
                train = [sys.executable, "-m", "vgg_ddp", "train", *recipe(options), *communication(name, options)]
                train += [f"run.dir={run}", f"seed={seed}"]
                done = subprocess.run(
                    train, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, cores)
                )
                if done.returncode:
                    last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
                    raise UserError(f"--train {options.train}, {name}: ended with {done.returncode}: {' '.join(last)}")
                losses = [row for row in read_metrics(run / "metrics.jsonl") if row["scope"] == "steps"]
                accuracy = json.loads((run / "evaluation/summary.json").read_text())["accuracy"]
            reached = [row["step"] for row in losses if row["loss"] < options.loss]
            row = {
                "name": f"{NETWORK} {IMAGE_SIZE}px training {name}, seed {seed}",
                "part": "training",
                "network": NETWORK,
                "precision": options.precision,
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
            rows.append(row)
    return rows


def recipe(options: argparse.Namespace) -> list[str]:
    """VGG-11 on images of 16 pixels, by a short recipe: the configuration and its overrides."""
    return [
        "configs/vgg11_short.yaml",
        f"network={NETWORK}",
        f"precision={options.precision}",
        f"data.source={options.train}",
        "data.train_sizes=[]",
        f"data.image_size={IMAGE_SIZE}",
        "device=cpu",
        "nproc=2",
        "threads=1",
        "epochs=1e-9",
        f"min_steps={options.train_steps}",
        f"log.every_steps={LOG_EVERY}",
    ]


def communication(name: str, options: argparse.Namespace) -> list[str]:
    """The overrides of a choice; PowerSGD begins after a tenth of the steps."""
    keys = dict(CHOICES[name])
    if "powersgd_warmup_steps" in keys:
        keys["powersgd_warmup_steps"] = options.train_steps // 10
    return [f"communication.{key}={value}" for key, value in keys.items()]
