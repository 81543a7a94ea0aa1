"""An evaluation as a page may show it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vgg_ddp.analysis.confusions import Counts, most_missed
from vgg_ddp.analysis.standing import Standing, of_classes
from vgg_ddp.config import Config, load
from vgg_ddp.data import of_run
from vgg_ddp.data.validation import count_held_out
from vgg_ddp.errors import UserError
from vgg_ddp.evaluation import stored
from vgg_ddp.report import words
from vgg_ddp.run.directory import RunDirectory, manifest_sha256, named


@dataclass(frozen=True)
class Evaluation(stored.StoredEvaluation):
    """RUN/evaluation, with every name made safe to show by `words.shown`; `summary` has them as they are."""

    @cached_property
    def classes(self) -> list[str]:
        """The names of the classes."""
        return [words.shown(name) for name in self.summary["classes"]]

    @cached_property
    def confusion(self) -> Counts:
        """Images, [true class, predicted class]."""
        return np.array(self.summary["confusion"], dtype=np.int64)

    @cached_property
    def standing(self) -> Standing:
        """Which classes stand out."""
        return of_classes(self.confusion)

    @property
    def looked_at(self) -> int | None:
        """The class whose misses are shown: the worst, or where none stands out the one with most; None without a miss."""
        return self.standing.worst[0] if self.standing.worst else most_missed(self.confusion)

    @cached_property
    def groups(self) -> dict[str, dict[str, Any]]:
        """Groups of classes by name, as `vgg_ddp.analysis.groups.describe` gives them."""
        return {words.shown(name): _shown_group(group) for name, group in self.summary["groups"].items()}

    @property
    def network(self) -> str:
        """The name of the network."""
        return words.shown(self.summary["network"])

    @property
    def dataset(self) -> str:
        """The name of the data set."""
        return words.shown(self.summary["dataset"])

    @property
    def split(self) -> str:
        """The name of the split."""
        return words.shown(self.summary["split"])


def recipe(run: Path) -> Config | None:
    """The configuration that a run was trained with; None where it is not there, or of another version."""
    try:
        return load(run / "config.yaml")
    except UserError:
        return None


def read_evaluation(run: Path) -> Evaluation:
    """The evaluation of `run`; see `stored.read_evaluation` for its errors."""
    return Evaluation(**vars(stored.read_evaluation(run)))


def _shown_group(group: dict[str, Any]) -> dict[str, Any]:
    taken_for = {words.shown(name): images for name, images in group["taken_for"].items()}
    return {**group, "classes": [words.shown(name) for name in group["classes"]], "taken_for": taken_for}


def of_best(run: RunDirectory, evaluation: Evaluation, recipe: Config | None) -> bool:
    """Whether an evaluation is of the best checkpoint of `run`, even if an override changed what was evaluated.

    Decided by the hashes of the manifests; without a best checkpoint, or a hash, by the configuration.
    """
    evaluated = evaluation.summary.get("checkpoint_sha256")
    try:
        best = named(run.checkpoints, "best")
    except UserError:  # its pointer is damaged
        best = None
    sha256 = None if best is None else manifest_sha256(best)
    if evaluated is None or sha256 is None:
        return recipe is not None and recipe.evaluate.checkpoint == "best"
    return bool(evaluated == sha256)


def validation_images(run: RunDirectory, evaluation: Evaluation, recipe: Config | None) -> list[int]:
    """On how many images of each class a training was validated; empty where that is not known.

    For a run of an earlier version, which has no record of its data, from the counts in its evaluation.
    """
    if recipe is None:
        return []
    if (trained_on := of_run.held(run)) is not None:
        return count_held_out(trained_on.record, recipe.data)
    counts = evaluation.summary["data"]["class_counts"]
    if "validation" in counts:
        return list(counts["validation"])
    used = [round(recipe.data.train_share * count) for count in counts.get("train", [])]
    return [round(recipe.data.validation * count) for count in used]
