"""`vgg-ddp study --learning-rate`: one short training whose rate rises until its loss does, and the rate that it suggests."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from vgg_ddp.analysis import range_test
from vgg_ddp.config import Config, load
from vgg_ddp.errors import EXIT_OK, EXIT_STOPPED, Signalled, UserError
from vgg_ddp.report import charts, words
from vgg_ddp.report.rendering import render
from vgg_ddp.run import outcome
from vgg_ddp.run.console import say
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.files import read_json
from vgg_ddp.run.metrics_log import Row, read_metrics
from vgg_ddp.study import command, running

# Overrides of the recipe for the test; the user's own follow them.
RISING = ["schedule.name=exponential", "schedule.first=1e-7", "optimizer.learning_rate=10", "schedule.warmup_epochs=0"]
SHORT = ["epochs=1e-9", "min_steps=120", "log.every_steps=1", "data.train_sizes=[]", "stop.patience=null"]
PLAIN = [
    "evaluate.checkpoint=last",
    "evaluate.every_epochs=1000000",
    "checkpoint.every_epochs=1000000",
    "loss.on_nonfinite=stop",
]


def run(config: Path, changes: list[str], out: Path | None, start: running.Start = running.start_command) -> int:
    """Run the test of the recipe `config`, and write STUDY/summary.json and its page; the exit code.

    Raises:
        UserError: a mistake in the configuration, a folder that holds something, or a training that failed or told nothing.
    """
    folder = out or Path("studies") / f"{config.stem}-learning-rate"
    asked = [*RISING, *SHORT, *PLAIN, *changes]
    if load(config, asked).optimizer.name == "muon":
        raise UserError(
            "optimizer.name=muon: the test raises optimizer.learning_rate, and muon_rate is its convolutions'"
        )
    with command.claimed(folder, "learning-rate.txt"):
        if (folder / "summary.json").is_file():
            raise UserError(f"{folder} holds a test of the learning rate already; choose another --out FOLDER")
        place = RunDirectory(folder / "run")
        written = ["train", str(config), *asked, f"run.dir={place.path}", "resume=auto"]
        output = folder / "learning-rate.txt"
        first = output.stat().st_size if output.is_file() else 0  # of what this attempt will say
        process = start(written, output, {})
        try:
            code = _until_it_diverges(process, place)
        except Signalled:
            process.terminate()
            process.wait()
            say("vgg-ddp: stopped on request; start it again to go on")
            return EXIT_STOPPED
        rates, losses = _points(read_metrics(place.metrics))
        if not losses.size:
            raise UserError(running.failure(output, code, first))
        rose = range_test.has_diverged(losses) or outcome.diverged(read_metrics(place.metrics))
        if code not in (EXIT_OK, *running.STOPPED) and not rose:
            raise UserError(running.failure(output, code, first))
        return _tell(folder, place, rates, losses)


def _until_it_diverges(process: running.Process, run: RunDirectory) -> int:
    """The exit code of the training, which is stopped once its loss has risen far."""
    while (code := process.poll()) is None:
        if range_test.has_diverged(_points(read_metrics(run.metrics))[1]):
            process.terminate()
            return process.wait()
        time.sleep(running.POLL)
    return code


def _points(rows: list[Row]) -> tuple[range_test.Array, range_test.Array]:
    """The rate and the training loss of each step, up to the first that is no number."""
    steps = [row for row in rows if (row["split"], row["scope"]) == ("train", "steps")]
    lost = next((k for k, row in enumerate(steps) if row["loss"] is None), len(steps))
    return np.array([row["lr"] for row in steps[:lost]]), np.array([row["loss"] for row in steps[:lost]])


def _tell(folder: Path, run: RunDirectory, rates: range_test.Array, losses: range_test.Array) -> int:
    """Write down and say what the test tells."""
    config, found = load(run.config), range_test.read(rates, losses)
    if found is None:
        raise UserError(
            f"the loss of {len(losses)} steps at rates from {rates[0]:.2g} to {rates[-1]:.2g} does not fall and rise again, so "
            "no rate can be suggested: try more min_steps=, another optimizer.learning_rate= or schedule.first=, a new --out"
        )
    suggested = [f"optimizer.learning_rate={found.suggested:.2g}", f"optimizer.rate_batch={config.batch}"]
    told: dict[str, Any] = {
        "suggested": found.suggested,
        "lowest": found.lowest,
        "begins": found.begins,
        "batch": config.batch,
        "steps": len(losses),
        "words": suggested,
    }
    page = _write(folder, run, rates, losses, found, config)
    run.write_json(folder / "summary.json", told)
    said = f"the loss begins to fall at a rate of {found.begins:.2g} and is lowest at {found.lowest:.2g}"
    say(f"{said}; a tenth of that: {' '.join(suggested)}\nreport: {page}")
    return EXIT_OK


def _write(
    folder: Path,
    run: RunDirectory,
    rates: range_test.Array,
    losses: range_test.Array,
    found: range_test.RangeTest,
    config: Config,
) -> Path:
    exponent = math.floor(math.log10(rates[0]))
    decades = (np.log10(rates) - exponent).tolist()
    dataset = words.shown(str((read_json(run.environment) or {}).get("data", config.data.source)))
    lines = [
        charts.Line("each step", (decades, losses.tolist()), "steps"),
        charts.Line("mean of neighbours", (decades, found.smooth.tolist()), "validation"),
    ]
    caption = f"Training loss on {dataset} while the learning rate rises from {rates[0]:.2g} to {rates[-1]:.2g}"
    svg = charts.lines("loss", caption, lines, "loss", x_label="learning rate", x_exponent=exponent)
    values = {
        "title": f"Learning rates for {config.network} on {dataset}",
        "dataset": dataset,
        "suggested": f"{found.suggested:.2g}",
        "begins": f"{found.begins:.2g}",
        "lowest": f"{found.lowest:.2g}",
        "batch": config.batch,
        "optimizer": config.optimizer.name,
        "steps": len(losses),
        "curves_drawn": [{"svg": svg, "caption": caption, "lines": lines}],
        "command": f"optimizer.learning_rate={found.suggested:.2g} optimizer.rate_batch={config.batch}",
        "sections": [("story", "In short"), ("training", "The test")],
    }
    return render("learning_rate.html.j2", values, folder / "report" / "index.html")
