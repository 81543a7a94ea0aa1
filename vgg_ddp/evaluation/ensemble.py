"""Several trained networks as one: the average of their soft-max on the same test images (section 4.4 of the paper)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vgg_ddp.analysis import data_quality
from vgg_ddp.analysis.budget import BUDGETS
from vgg_ddp.analysis.predictions import Predictions
from vgg_ddp.analysis.summary import describe
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.other_classes import listed
from vgg_ddp.data.record import read_record
from vgg_ddp.errors import UserError
from vgg_ddp.evaluation import why
from vgg_ddp.evaluation.stored import StoredEvaluation, read_evaluation, write_evaluation
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.resolved import ResolvedRun

SMALLEST = np.finfo(np.float32).tiny  # replaces probabilities that float32 rounds to 0, to keep logarithms finite


def common_test_set(members: Sequence[ResolvedRun]) -> Dataset:
    """The data set that all runs are to be evaluated on, opened as the first run knows it.

    Raises:
        UserError: two runs differ in it, or in the classes that they tell apart.
    """
    first, *others = (Dataset(member.dataset, read_record(RunDirectory(member.run).data)) for member in members)
    for member, dataset in zip(members[1:], others):
        refused = f"{members[0].run} and {member.run} cannot answer together"
        if dataset.classes != first.classes:
            raise UserError(
                f"{refused}: the one tells apart {listed(first.classes)}, the other {listed(dataset.classes)}"
            )
        if dataset.sha256 != first.sha256:
            raise UserError(
                f"{refused}: the one is tested on {first.directory}, the other on {dataset.directory}, "
                "which holds other images; set data.source for both"
            )
    return first


def average(members: Sequence[StoredEvaluation]) -> Predictions:
    """The mean of the probabilities that networks gave the same images; the logits are its logarithm."""
    mean = np.mean([member.probabilities.astype(np.float64) for member in members], axis=0)
    logits = np.log(np.maximum(mean, SMALLEST)).astype(np.float32)
    return Predictions(members[0].label, logits, members[0].sample_index)


def combine(runs: Sequence[ResolvedRun], dataset: Dataset, out: Path) -> dict[str, Any]:
    """Write OUT/evaluation from what each run's evaluation on `dataset` left; what its summary.json says.

    Raises:
        UserError: one of them is not there or damaged, or the disk cannot be written.
    """
    members = [read_evaluation(Path(run.out)) for run in runs]
    groups = runs[0].config.analysis.groups
    predictions = average(members)
    reason = "the networks held out images for validation each for itself"
    budget = runs[0].config.analysis.budget
    data = data_quality.describe(dataset, BUDGETS[budget].compared_pixels)
    checkpoints = [member.summary["checkpoint_sha256"] for member in members]
    summary = {
        "dataset": dataset.name,
        "split": "test",
        "protocol": members[0].summary["protocol"],
        "members": [
            {
                "run": run.run,
                **{key: member.summary[key] for key in ("network", "protocol", "accuracy", "checkpoint_sha256")},
            }
            for run, member in zip(runs, members)
        ],
        "warnings": [f"{run.run}: {line}" for run, member in zip(runs, members) for line in member.summary["warnings"]],
        **describe(
            predictions,
            dataset.classes,
            groups or dataset.record.groups,
            None,
            reason,
            named_by="configuration" if groups else "data set",
        ),
        "data": data,
        "near_duplicates_accuracy": data_quality.accuracy_by_doubles(
            data["near_duplicates"], predictions.prediction == predictions.label, predictions.sample_index
        ),
        "why": why.left_out("Looked for only in the answers of one network.", budget),
        "network": " + ".join(member.summary["network"] for member in members),
        "checkpoint_sha256": hashlib.sha256(" ".join(checkpoints).encode()).hexdigest(),
        "world_size": members[0].summary["world_size"],
    }
    write_evaluation(RunDirectory(out), summary, predictions, {})
    return summary
