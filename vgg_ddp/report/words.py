"""The sentences and numbers of the report, as pure functions of the confusion matrix.

A confusion matrix here is an int array [classes, classes]: rows are true classes, columns predicted ones.
"""

from __future__ import annotations

import math
import re
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Counts: TypeAlias = npt.NDArray[np.int64]

NBSP = "\u00a0"  # a number and its unit stay on one line
UNKNOWN = "not recorded"
MOST_GROUPS_IN_A_SENTENCE = 4

# Said with the other article than their first letter suggests.
_SOUNDS_LIKE_A = re.compile(r"(uni|eu|ewe|one\b|use|usu|uk|ut[eio])", re.IGNORECASE)
_SOUNDS_LIKE_AN = re.compile(r"(hour|honest|honour|heir|8|11(?!\d)|18(?!\d))", re.IGNORECASE)


def shown(name: str) -> str:
    """`name` without what a page must not carry: control characters, text-direction overrides, lone surrogates."""
    joiners = "\u200c\u200d"  # not "printable", but part of the spelling in Persian and Hindi
    return "".join(c if c.isprintable() or c in joiners else "\ufffd" for c in name)


def percent(share: float | None, digits: int = 1) -> str:
    """A share from 0 to 1 as a percentage. Only none at all reads 0 %, and only all of them 100 %."""
    if share is None:
        return UNKNOWN
    if not math.isfinite(share):
        return "not a number"
    text = f"{100 * share:.{digits}f}"
    while 0 < share < 1 and float(text) in (0, 100) and digits < 6:
        digits += 1
        text = f"{100 * share:.{digits}f}"
    return f"{text}{NBSP}%" if float(text) not in (0, 100) else f"{float(text):.0f}{NBSP}%"


def number(value: float | None, digits: int = 0) -> str:
    """A number with thousands separated by commas."""
    if value is None:
        return UNKNOWN
    return f"{round(value, digits) + 0.0:,.{digits}f}" if math.isfinite(value) else "not a number"  # + 0.0: no "-0"


def cell(share: float) -> str:
    """`percent` without its sign, for a table of nothing else."""
    return percent(share).removesuffix(f"{NBSP}%")


def images_of(count: int, split: str) -> str:
    """A count of images of a split, e.g. "1 test image"."""
    return f"{number(count)} {split} image{'' if count == 1 else 's'}"


def duration(seconds: float | None) -> str:
    """Seconds in the two units a reader would use, e.g. "3 min 36 s"."""
    if seconds is None or not math.isfinite(seconds):
        return number(seconds)
    if round(seconds, 1) < 60:
        return f"{seconds:.1f}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NBSP}h {minutes}{NBSP}min" if hours else f"{minutes}{NBSP}min {rest}{NBSP}s"


def memory(size: float | None) -> str:
    """Bytes in MiB or GiB."""
    if size is None:
        return UNKNOWN
    return f"{size / 2**20:,.0f}{NBSP}MiB" if size < 2**30 else f"{size / 2**30:,.1f}{NBSP}GiB"


def named(name: str) -> str:
    """A class name with its article ("a cat", "an 8"), or in quotation marks where it takes none ("roses", "n0144")."""
    word = re.fullmatch(r"[a-z][a-z _-]*|\d{1,2}", name)
    plural = name.endswith("s") and not name.endswith(("ss", "us"))
    if not word or plural:
        return f"\u201c{name}\u201d"
    vowel = name[0] in "aeiou" and not _SOUNDS_LIKE_A.match(name)
    return f"{'an' if vowel or _SOUNDS_LIKE_AN.match(name) else 'a'} {name}"


def listed(parts: list[str], last: str = "and") -> str:
    """`parts` joined by commas, the last by `last`."""
    return f"{', '.join(parts[:-1])} {last} {parts[-1]}" if len(parts) > 1 else "".join(parts)


def recall(confusion: Counts) -> npt.NDArray[np.float64]:
    """Share of each class that was named correctly, [classes]; NaN for a class without images."""
    totals = confusion.sum(axis=1)
    return np.where(totals > 0, np.diag(confusion) / np.maximum(totals, 1), np.nan)


def worst_class(confusion: Counts) -> int | None:
    """The class with the lowest accuracy, of equals the one with most misses; None where nothing was missed."""
    misses = confusion.sum(axis=1) - np.diag(confusion)
    if not misses.any():
        return None
    accuracy = recall(confusion)
    return int(np.lexsort((-misses, np.where(np.isnan(accuracy), np.inf, accuracy)))[0])


def taken_for(confusion: Counts, true: int) -> list[tuple[int, int]]:
    """What the missed images of class `true` were taken for: (class, images), most frequent first."""
    row = confusion[true].copy()
    row[true] = 0
    return [(int(k), int(row[k])) for k in np.argsort(-row, kind="stable") if row[k]]


def overall_sentence(network: str, dataset: str, split: str, confusion: Counts) -> str:
    """How many images the network names correctly."""
    total, right = int(confusion.sum()), int(np.trace(confusion))
    of = f"Of {images_of(total, split)} of {dataset}, {network} names"
    if right in (0, total):
        return f"{of} {'none' if right == 0 else 'every one'} correctly."
    return f"{of} {number(right)} correctly: {percent(right / total)}."


def extremes_sentence(classes: list[str], confusion: Counts) -> str:
    """The best and the worst class, and which classes had no image to be judged by."""
    accuracy = recall(confusion)
    judged = np.flatnonzero(~np.isnan(accuracy))
    empty = [named(classes[k]) for k in np.flatnonzero(np.isnan(accuracy))]
    some = listed(empty[:3] if len(empty) <= 3 else [*empty[:3], f"{len(empty) - 3} more"], "or")
    unjudged = f" No image shows {some}, so nothing is known there." if empty else ""
    if len(judged) == 0:
        return unjudged.strip()
    high, low = accuracy[judged].max(), accuracy[judged].min()
    if high == low:
        which = "The only class with images" if len(judged) == 1 else "Every class"
        return f"{which} is at {percent(float(high))}.{unjudged}"
    best = [classes[k] for k in judged if accuracy[k] == high]
    worst = classes[worst_class(confusion) or 0]
    ties = f"{named(best[0])} best" if len(best) == 1 else f"{len(best)} classes best"
    return f"It recognises {ties} ({percent(float(high))}) and {named(worst)} worst ({percent(float(low))}).{unjudged}"


def misses_sentence(classes: list[str], confusion: Counts) -> str:
    """What the worst class is taken for: the three most frequent, and their share together. Empty without a miss."""
    worst = worst_class(confusion)
    if worst is None:
        return ""
    answers = taken_for(confusion, worst)
    if len(answers) == 1:
        return f"When {named(classes[worst])} is missed it is always taken for {named(classes[answers[0][0]])}."
    misses = sum(count for _, count in answers)
    missed = named(classes[worst])
    first = [f"{named(classes[k])} ({percent(count / misses, 0)})" for k, count in answers[:3]]
    together = percent(sum(count for _, count in answers[:3]) / misses, 0) if len(answers) > 3 else "all"
    return f"When {missed} is missed it is taken for {', '.join(first)}: together {together} of the misses."


def group_shares(classes: list[str], confusion: Counts, groups: dict[str, list[str]]) -> list[tuple[str, int, int]]:
    """Per group (name, images, images taken for any class of the group), best first; groups without images left out."""
    index = {name: k for k, name in enumerate(classes)}
    rows = []
    for group, members in groups.items():
        inside = [index[name] for name in members if name in index]
        images, kept = int(confusion[inside].sum()), int(confusion[np.ix_(inside, inside)].sum())
        if images:
            rows.append((group, images, kept))
    return sorted(rows, key=lambda row: -row[2] / row[1])


def groups_sentence(shares: list[tuple[str, int, int]]) -> str:
    """How often an image is taken for a class of its own group, given `group_shares`; empty without groups."""
    if not shares:
        return ""
    said = [f"{group} taken for {group} {percent(kept / images)}" for group, images, kept in shares]
    if len(said) > MOST_GROUPS_IN_A_SENTENCE:
        overall = percent(sum(kept for *_, kept in shares) / sum(images for _, images, _ in shares))
        return f"{overall} are taken for a class of their own group: {said[0]} at best, {said[-1]} at worst."
    return f"By group: {listed(said)}."


def sureness_sentence(confidence: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> str:
    """Mean confidence [images] of right and of wrong answers; empty where all are right or all wrong."""
    if right.all() or not right.any():
        return ""
    return (
        f"On average the network is {percent(float(confidence[right].mean()), 0)} sure of its right answers "
        f"and {percent(float(confidence[~right].mean()), 0)} sure of its wrong ones."
    )
