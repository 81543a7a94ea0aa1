"""Groups of classes: those that are named, or those that the network confuses on images held out for validation.

Groups that are found are judged on other images than they were found on: on the same ones any clustering looks good.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis.confusions import Counts
from vgg_ddp.analysis.intervals import wilson
from vgg_ddp.analysis.predictions import Predictions

MOST_NAMES = 3  # of members, in the name of a group that was found
DRAWS = 200  # of wrong answers without structure
ROUNDS = 3  # of exchanges between two draws; each moves nearly every answer
CHANCE = 0.01  # p-value from which on found groups count as chance


def mean_probabilities(predictions: Predictions) -> NDArray[np.float64]:
    """The mean probability of each class on the images of each true class, [true class, class]; zeros without images."""
    probabilities = np.nan_to_num(np.exp(predictions.log_probabilities))
    images = np.bincount(predictions.label, minlength=probabilities.shape[1])
    sums = np.zeros((len(images), len(images)))
    np.add.at(sums, predictions.label, probabilities)
    return sums / np.maximum(images, 1)[:, None]


def find(likeness: NDArray[np.float64]) -> list[list[int]]:
    """Classes that are taken for one another, by average-linkage clustering; [] for no groups.

    Two classes are the closer the more one is taken for the other. The tree is cut where the modularity of the
    confusions is highest (Newman and Girvan 2004, equation 5), and nowhere if no cut is better than one group of all.

    Args:
        likeness: how much each class is taken for each, [true class, answer]: counts, or `mean_probabilities`.
    """
    shares = likeness / np.maximum(likeness.sum(axis=1, keepdims=True), 1)
    closeness = (shares + shares.T) / 2
    np.fill_diagonal(closeness, 0.0)
    if len(likeness) < 3 or not closeness.any():
        return []
    distance = 1 - closeness / closeness.max()
    np.fill_diagonal(distance, 0.0)
    from scipy.cluster.hierarchy import fcluster, linkage  # slow to import
    from scipy.spatial.distance import squareform

    tree = linkage(squareform(distance, checks=False), method="average")
    cuts = [fcluster(tree, count, criterion="maxclust") for count in range(2, len(likeness))]
    best = max(cuts, key=lambda cut: _modularity(closeness, cut))
    if _modularity(closeness, best) <= 0:
        return []
    members = [np.flatnonzero(best == number).tolist() for number in np.unique(best)]
    return sorted(members)


def _modularity(closeness: NDArray[np.float64], cut: NDArray[np.int32]) -> float:
    """Share of the confusions that stay inside a group, less what chance would keep there."""
    weight, total = closeness.sum(axis=1), closeness.sum()
    inside = closeness[cut[:, None] == cut].sum() / total
    return float(inside - ((np.bincount(cut, weights=weight) / total) ** 2).sum())


def name_found(members: list[list[int]], classes: list[str]) -> dict[str, list[str]]:
    """Groups from `find`, each by a name made of its first members."""
    named: dict[str, list[str]] = {}
    for group in members:
        names = [classes[k] for k in group]
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        name = ", ".join(names[:MOST_NAMES]) + more
        named[name if name not in named else f"{name} ({len(named) + 1})"] = names
    return named


def without_structure(confusion: Counts, group_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many wrong answers would stay in the group of the true class by chance alone, [DRAWS, groups].

    The wrong answers are exchanged between images at random, again and again, but never so that one becomes right: each
    class is missed and answered as often as it was. All such exchanges are equally likely (Besag and Clifford 1989,
    "Generalized Monte Carlo significance tests").

    Args:
        group_of: the group of each class, [classes]; -1 for none.
    """
    random = np.random.default_rng(0)
    true, answer = (axis.repeat(count) for axis, count in _mistakes(confusion))
    groups = int(group_of.max(initial=-1)) + 1
    drawn = np.zeros((DRAWS, groups), dtype=np.int64)
    half = len(true) // 2
    for k in range(DRAWS):
        for _ in range(ROUNDS):
            order = random.permutation(len(true))
            one, other = order[:half], order[half : 2 * half]
            allowed = (answer[one] != true[other]) & (answer[other] != true[one])
            one, other = one[allowed], other[allowed]
            answer[one], answer[other] = answer[other], answer[one]
        stayed = group_of[true] == group_of[answer]
        drawn[k] = np.bincount(group_of[true][stayed & (group_of[true] >= 0)], minlength=groups)
    return drawn


def _mistakes(confusion: Counts) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """For true classes and for answers: those of each kind of mistake, and how many there are of each kind."""
    kinds = np.nonzero(confusion * ~np.eye(len(confusion), dtype=bool))
    return [(axis, confusion[kinds]) for axis in kinds]


def judge(confusion: Counts, classes: list[str], groups: dict[str, list[str]]) -> dict[str, Any]:
    """Whether the wrong answers on these images stay in their groups more often than chance keeps them there.

    Returns: `groups` as `describe` gives them, each with the share of its images that would be `within_by_chance`; and
    `together`, the same over all groups, with `p_value`: how often wrong answers without structure stay as often.
    """
    described = describe(confusion, classes, groups)
    if not described:
        return {"groups": {}, "together": None}
    index = {name: k for k, name in enumerate(classes)}
    group_of = np.full(len(classes), -1)
    for number, group in enumerate(described.values()):
        group_of[[index[name] for name in group["classes"]]] = number
    drawn = without_structure(confusion, group_of)
    for group, expected in zip(described.values(), drawn.mean(axis=0).tolist()):
        group["within_by_chance"] = (group["correct"] + expected) / group["images"] if group["images"] else None
    images, within, correct = (
        sum(group[key] for group in described.values()) for key in ("images", "within", "correct")
    )
    chance = (correct + float(drawn.sum(axis=1).mean())) / images if images else None
    as_good = int((drawn.sum(axis=1) >= within - correct).sum())
    return {
        "groups": described,
        "together": {
            "images": images,
            "within": within,
            "within_accuracy": within / images if images else None,
            "within_by_chance": chance,
            "p_value": (1 + as_good) / (1 + DRAWS),
        },
    }


def found_or_named(
    confusion: Counts, classes: list[str], named: dict[str, list[str]], named_by: str, validation: Predictions | None
) -> dict[str, Any]:
    """Groups of classes, judged on the images of `confusion`.

    Args:
        named: groups by name; where there are none they are looked for in `validation`, and kept where they are more than
            chance.
        named_by: who names them.
        validation: predictions on other images, held out from training.

    Returns: `groups` (none where there are none), `groups_from` (who named them, or "validation images"; None),
    `groups_together` (see `judge`; None), and `groups_words`: where there are none, why.
    """
    if named:
        judged = judge(confusion, classes, named)
        return _told(judged["groups"], named_by, judged["together"], "")
    if validation is None:
        why = "without images held out for validation none can be looked for: groups must be found on other images"
        return _told({}, None, None, why)
    members = name_found(find(mean_probabilities(validation)), classes)
    if not members:
        return _told({}, None, None, f"no classes belong together in the {len(validation.label):,} validation images")
    judged = judge(confusion, classes, members)
    if judged["together"]["p_value"] < CHANCE:
        return _told(judged["groups"], "validation images", judged["together"], "")
    within, chance = judged["together"]["within_accuracy"], judged["together"]["within_by_chance"]
    why = (
        f"those found on {len(validation.label):,} validation images keep {within:.1%} of these images in their group, "
        f"which is no more than chance ({chance:.1%})"
    )
    return _told({}, None, judged["together"], why)


def _told(
    groups: dict[str, dict[str, Any]], origin: str | None, together: dict[str, Any] | None, why: str
) -> dict[str, Any]:
    return {"groups": groups, "groups_from": origin, "groups_together": together, "groups_words": why}


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
