"""Groups of classes: those the data set names, or those that the network itself confuses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis.confusions import Counts
from vgg_ddp.analysis.intervals import wilson

MOST_NAMES = 3  # of members, in the name of a group that was found


def find(confusion: Counts) -> list[list[int]]:
    """Classes that are taken for one another, by average-linkage clustering of the confusion matrix; [] for no groups.

    Two classes are the closer the more often one is taken for the other. The tree is cut where the modularity of the
    confusions is highest (Newman and Girvan 2004, equation 5), and nowhere if no cut is better than one group of all.
    """
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    closeness = (shares + shares.T) / 2
    np.fill_diagonal(closeness, 0.0)
    if len(confusion) < 3 or not closeness.any():
        return []
    distance = 1 - closeness / closeness.max()
    np.fill_diagonal(distance, 0.0)
    from scipy.cluster.hierarchy import fcluster, linkage  # slow to import
    from scipy.spatial.distance import squareform

    tree = linkage(squareform(distance, checks=False), method="average")
    cuts = [fcluster(tree, count, criterion="maxclust") for count in range(2, len(confusion))]
    best = max(cuts, key=lambda cut: _modularity(closeness, cut))
    if _modularity(closeness, best) <= 0:
        return []
    members = [np.flatnonzero(best == number).tolist() for number in np.unique(best)]
    return sorted(members)


def _modularity(closeness: NDArray[np.float64], cut: NDArray[np.int32]) -> float:
    """Share of the confusions that stay inside a group, less what chance would keep there."""
    weight, total = closeness.sum(axis=1), closeness.sum()
    return sum(
        float(closeness[np.ix_(cut == k, cut == k)].sum() / total - (weight[cut == k].sum() / total) ** 2)
        for k in np.unique(cut)
    )


def name_found(members: list[list[int]], classes: list[str]) -> dict[str, list[str]]:
    """Groups from `find`, each by a name made of its first members."""
    named: dict[str, list[str]] = {}
    for group in members:
        names = [classes[k] for k in group]
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        name = ", ".join(names[:MOST_NAMES]) + more
        named[name if name not in named else f"{name} ({len(named) + 1})"] = names
    return named


def describe(confusion: Counts, classes: list[str], groups: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """For each group how often its images are taken for a class of the group, and for their own.

    Returns: by the group's name `classes`, `images`, `within` (images taken for any class of the group), `correct` (for
    their own), `within_accuracy` and `accuracy` as shares of `images` with the intervals of both, and `taken_for`: by name
    of group the images taken for a class of it.
    """
    index = {name: k for k, name in enumerate(classes)}
    inside = {group: [index[name] for name in members if name in index] for group, members in groups.items()}
    described = {}
    for group, rows in inside.items():
        images, within = int(confusion[rows].sum()), int(confusion[np.ix_(rows, rows)].sum())
        correct = int(confusion[rows, rows].sum())
        described[group] = {
            "classes": [classes[k] for k in rows],
            "images": images,
            "within": within,
            "correct": correct,
            "within_accuracy": within / images if images else None,
            "within_interval": wilson(within, images),
            "accuracy": correct / images if images else None,
            "accuracy_interval": wilson(correct, images),
            "taken_for": {other: int(confusion[np.ix_(rows, columns)].sum()) for other, columns in inside.items()},
        }
    return described
