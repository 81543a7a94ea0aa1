"""The sentences and numbers of the report, as pure functions of the confusion matrix.

A confusion matrix here is an int array [classes, classes]: rows are true classes, columns predicted ones.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from vgg_ddp.analysis.confusions import Counts, recall, taken_for
from vgg_ddp.analysis.standing import FEWEST, Standing, of_counts
from vgg_ddp.config import Config
from vgg_ddp.config.augment import AugmentConfig

NBSP = "\u00a0"  # a number and its unit stay on one line
DASH = "\u2013"  # in a table, for what is not there
UNKNOWN = "not recorded"
MOST_GROUPS_IN_A_SENTENCE = 4
LONGEST_FILE_NAME = 100  # letters
NEARLY_ALL = 0.98  # of the training images: there is no more to learn from them
LOOKALIKES = 0.1  # of the test images with a double: more than copies would explain

# Said with the other article than their first letter suggests.
_SOUNDS_LIKE_A = re.compile(r"(uni|eu|ewe|one\b|use|usu|uk|ut[eio])", re.IGNORECASE)
_SOUNDS_LIKE_AN = re.compile(r"(hour|honest|honour|heir)", re.IGNORECASE)
_NO_THING = re.compile("yes|no|true|false|none|other|unknown|on|off|good|bad|left|right|positive|negative|(ab)?normal")


def shown(name: str) -> str:
    """`name` without what a page must not carry: control characters, text-direction overrides, lone surrogates.

    A name with letters that run from right to left is isolated, so that it leaves the text around it in order.
    """
    joiners = "\u200c\u200d"  # not "printable", but part of the spelling in Persian and Hindi
    text = "".join(c if c.isprintable() or c in joiners else "\ufffd" for c in name)
    return f"\u2068{text}\u2069" if any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in text) else text


def shown_text(text: str) -> str:
    """`shown` for a text of many lines."""
    return "\n".join(shown(line) for line in text.splitlines())


def shortened(name: str) -> str:
    """A file name as `shown`, its middle left out where it is very long."""
    half = LONGEST_FILE_NAME // 2
    return shown(name if len(name) <= LONGEST_FILE_NAME else f"{name[:half]}\u2026{name[-half:]}")


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


def measure(share: float | None) -> str:
    """`percent` for a table; a dash where there is no share, or it is no number."""
    return DASH if share is None or math.isnan(share) else percent(share)


def span(interval: Sequence[float] | None) -> str:
    """The two ends of an interval, e.g. "79.5 to 81.0 %"; empty without one."""
    return "" if interval is None else f"{cell(interval[0])} to {percent(interval[1])}"


def points(difference: float) -> str:
    """A difference of shares in percentage points, signed, e.g. "+1.25"."""
    return f"{100 * difference:+.2f}".replace("-", "\u2212")


def p_value(value: float) -> str:
    """A p-value to two digits, e.g. "0.032"."""
    return "below 0.0001" if value < 1e-4 else f"{min(value, 1.0):.2g}"


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
    """A class name with its article ("a cat"), or in quotation marks where it takes none ("roses", "yes", "8", "n0144")."""
    word = re.fullmatch(r"[a-z][a-z _-]*", name)
    plural = name.endswith("s") and not name.endswith(("ss", "us"))
    if not word or plural or _NO_THING.fullmatch(name):
        return f"\u201c{name}\u201d"
    vowel = name[0] in "aeiou" and not _SOUNDS_LIKE_A.match(name)
    return f"{'an' if vowel or _SOUNDS_LIKE_AN.match(name) else 'a'} {name}"


def listed(names: list[str], last: str = "and") -> str:
    """`names` joined by commas, the last by `last`."""
    return f"{', '.join(names[:-1])} {last} {names[-1]}" if len(names) > 1 else "".join(names)


def overall_sentence(network: str, dataset: str, split: str, confusion: Counts) -> str:
    """How many images the network names correctly."""
    total, right = int(confusion.sum()), int(np.trace(confusion))
    of = f"Of {images_of(total, split)} of {dataset}, {network} names"
    if right in (0, total):
        return f"{of} {'none' if right == 0 else 'every one'} correctly."
    return f"{of} {number(right)} correctly: {percent(right / total)}."


def extremes_sentence(classes: list[str], confusion: Counts, standing: Standing) -> str:
    """The classes that stand out as best and worst, and which had no images, or too few, to be judged by."""
    accuracy = recall(confusion)
    judged = np.flatnonzero(~np.isnan(accuracy))
    unjudged = _unjudged(classes, standing)
    if len(judged) == 0:
        return unjudged
    high, low = float(accuracy[judged].max()), float(accuracy[judged].min())
    if high == low:
        which = "The only class with images" if len(judged) == 1 else "Every class"
        said = f"{which} is at {percent(high)}."
    elif not (standing.best or standing.worst):
        said = (
            "No class is recognised better or worse than the others by more than chance: "
            f"they lie between {percent(low)} and {percent(high)}."
        )
    else:
        ends = [
            _end(classes, accuracy, ks, end) for ks, end in ((standing.best, "best"), (standing.worst, "worst")) if ks
        ]
        missing = "" if len(ends) == 2 else f"; no class stands out as {'worst' if standing.best else 'best'}"
        said = f"It recognises {' and '.join(ends)}{missing}."
    return f"{said} {unjudged}".strip()


def _end(classes: list[str], accuracy: npt.NDArray[np.float64], alike: list[int], end: str) -> str:
    """The best or the worst class, and those that are too close to be told from it."""
    first, *others = alike
    close = listed([named(classes[k]) for k in others]) if len(others) <= 2 else f"{len(others)} more"
    verb = "is" if len(others) == 1 else "are"
    tied = f"; {close} {verb} too close to be told from it" if others else ""
    return f"{named(classes[first])} {end} ({percent(float(accuracy[first]))}{tied})"


def _unjudged(classes: list[str], standing: Standing) -> str:
    """The classes that no image shows, and those that too few show."""
    said = []
    for verdict in ("no images", "too few images"):
        names = [named(classes[k]) for k in standing.unlike(verdict)]
        some = names if len(names) <= 3 else [*names[:3], f"{len(names) - 3} more"]
        if names and verdict == "no images":
            said.append(f"No image shows {listed(some, 'or')}, so nothing is known there.")
        elif names:
            said.append(f"Fewer than {FEWEST} images show {listed(some)}: too few to call a class best or worst.")
    return " ".join(said)


def misses_sentence(classes: list[str], confusion: Counts, true: int) -> str:
    """What the missed images of a class are taken for: the three most frequent, and their share together."""
    answers = taken_for(confusion, true)
    misses = sum(count for _, count in answers)
    missed = named(classes[true])
    if len(answers) == 1:
        return (
            f"When {missed} is missed it is always taken for {named(classes[answers[0][0]])} ({number(misses)} misses)."
        )
    first = [f"{named(classes[k])} ({percent(count / misses, 0)})" for k, count in answers[:3]]
    together = percent(sum(count for _, count in answers[:3]) / misses, 0) if len(answers) > 3 else "all"
    return f"When {missed} is missed it is taken for {', '.join(first)}: together {together} of its {number(misses)} misses."


def standing_sentence(classes: list[str], confusion: Counts, standing: Standing, shown: int) -> str:
    """Whether the class whose misses are shown is worse than the others, or only shown for its misses."""
    if shown not in standing.worst:
        return "No class is worse than the others by more than chance; this is the one with most misses."
    images, right = int(confusion.sum()), int(np.trace(confusion))
    own_images, own_right = int(confusion[shown].sum()), int(confusion[shown, shown])
    others = percent((right - own_right) / max(images - own_images, 1))
    return (
        f"{percent(own_right / own_images)} of its images are named correctly, of the others {others}: more than chance "
        f"(p {p_value(standing.p_values[shown])}, Fisher's exact test, corrected by Holm for {number(len(classes))} classes)."
    )


def kin_sentence(classes: list[str], confusion: Counts, groups: dict[str, dict[str, Any]], true: int) -> str:
    """How many of the wrong answers to a class stay in its group; empty where it has no group."""
    own = [name for name, group in groups.items() if classes[true] in group["classes"]]
    if not own or len(groups[own[0]]["classes"]) < 2:
        return ""
    inside = [k for k, name in enumerate(classes) if name in groups[own[0]]["classes"] and k != true]
    misses = int(confusion[true].sum() - confusion[true, true])
    return (
        f"{percent(int(confusion[true, inside].sum()) / misses, 0)} of the wrong answers stay among {quoted(own[0])}."
    )


def groups_sentence(groups: dict[str, dict[str, Any]]) -> str:
    """How often an image is taken for a class of its own group, the most often first; empty without groups."""
    judged = sorted((g for g in groups.items() if g[1]["images"]), key=lambda group: -group[1]["within_accuracy"])
    if not judged:
        return ""
    said = [f"{quoted(name)} for {quoted(name)} {percent(group['within_accuracy'])}" for name, group in judged]
    if len(said) > MOST_GROUPS_IN_A_SENTENCE:
        counts = (np.array([group[key] for _, group in judged]) for key in ("within", "images"))
        stands = of_counts(*counts)
        ends = f"{said[0]} at best, {said[-1]} at worst."
        return f"{ends[0].upper()}{ends[1:]}" if stands.best and stands.worst else ""
    return f"{said[0][0].upper()}{said[0][1:]}" + "".join(f", {text}" for text in said[1:]) + "."


def kind_sentence(summary: dict[str, Any]) -> str:
    """How many images are taken for a class of their own group, and how many would be by chance."""
    together = summary["groups_together"]
    if together is None or not together["images"]:
        return ""
    return (
        f"{percent(together['within_accuracy'])} of the {images_of(together['images'], summary['split'])} of these groups are "
        f"taken for a class of their own group; {percent(together['within_by_chance'])} would be if the wrong answers had "
        f"nothing to do with the groups (p {p_value(together['p_value'])})."
    )


def groups_origin(summary: dict[str, Any]) -> str:
    """Who named the groups, or where they were found, and that this is more than chance."""
    origin = {
        "data set": "The groups are the data set's own.",
        "configuration": "The groups are those of analysis.groups.",
        "validation images": "Nobody named groups: these were found on the validation images, as classes that the network "
        f"takes for one another there, and are judged here on the {shown(summary['split'])} images.",
    }
    return f"{kind_sentence(summary)} {origin.get(summary['groups_from'], '')}".strip()


def no_groups_sentence(summary: dict[str, Any]) -> str:
    """Why there are no groups, and how to name some."""
    why = summary["groups_words"]
    said = "There are no groups of classes: the data set names none"
    return f"{said}{f', and {why}' if why else ''}. Name your own with analysis.groups (docs/report.md)."


def continuum_sentence(top_k: dict[str, float], confusion: Counts, groups: dict[str, dict[str, Any]]) -> str:
    """How wrong it is when it is wrong: how often the class is among the first answers, and how often the kind is right."""
    counts = {"2": "two", "3": "three"}
    near = [f"{percent(top_k[k])} among its first {counts[k]}" for k in counts if k in top_k]
    said = f"The right class is its first answer for {percent(top_k['1'])} of the images"
    said += f", and {' and '.join(near)}." if near else "."
    within, correct = (sum(group[key] for group in groups.values()) for key in ("within", "correct"))
    mistakes = sum(group["images"] for group in groups.values()) - correct
    if not groups or not mistakes:
        return said
    kept = within - correct
    return (
        f"{said} Of its {number(mistakes)} mistakes {percent(kept / mistakes, 0)} keep the kind: counted as half a mistake "
        f"each, they make the accuracy {percent((correct + kept / 2) / (correct + mistakes))}."
    )


def baselines_sentence(confusion: Counts, neighbour: dict[str, int]) -> str:
    """What needs no network: guessing, always the most frequent class, the most alike training image."""
    images = int(confusion.sum())
    most = int(confusion.sum(axis=1).max(initial=0))
    said = (
        f"Guessing is right for {percent(1 / len(confusion))}, always answering the most frequent class for "
        f"{percent(most / max(images, 1))}"
    )
    if not neighbour["images"]:
        return f"{said}."
    return (
        f"{said}, the answer of the most alike of {number(neighbour['training_images'])} training images (8 x 8 grey pixels) "
        f"for {percent(neighbour['correct'] / neighbour['images'])}; the network for "
        f"{percent(int(np.trace(confusion)) / images)} of the {images_of(images, 'test')}."
    )


def memory_sentence(remembered: dict[str, Any], test_accuracy: float, test_images: int) -> str:
    """Whether it has learned or remembers: its accuracy on images that it was trained on, beside that on others."""
    seen, images = remembered["accuracy"], remembered["images"]
    gap = seen - test_accuracy
    noise = 1.96 * math.sqrt(seen * (1 - seen) / images + test_accuracy * (1 - test_accuracy) / test_images)
    said = (
        f"With its final weights it names {percent(seen)} of {images_of(images, 'training')}, without augmentation, and "
        f"{percent(test_accuracy)} of {images_of(test_images, 'test')}: {points(gap)} points (95{NBSP}% interval "
        f"{points(gap - noise)} to {points(gap + noise)})."
    )
    if gap - noise <= 0:
        return f"{said} That is no more than chance: no sign of overfitting."
    more = " Even of its training images it misses some: it may learn more yet." if seen < NEARLY_ALL else ""
    return f"{said} What it was trained on it knows better than what is new to it: it overfits by that much.{more}"


def quoted(name: str) -> str:
    """A name beside a figure or in a sentence: one word as it is ("animals"), all others in quotation marks ("8")."""
    return name if re.fullmatch(r"[a-z-]+", name) else f"\u201c{name}\u201d"


def evenness_sentence(counts: dict[str, list[int]], classes: list[str]) -> str:
    """Whether the classes have as many images as one another, in the split of the training."""
    found = counts.get("train") or next(iter(counts.values()))
    low, high = min(found), max(found)
    if low == high:
        return f"Every class has {number(low)} training images."
    few, many = named(classes[found.index(low)]), named(classes[found.index(high)])
    if low == 0:
        return f"No training image shows {few}; {number(high)} show {many}."
    times = f"{high / low:.1f} times as many" if high / low >= 1.05 else "almost as many"
    return f"Training images show {few} {number(low)} times and {many} {number(high)} times: {times}."


VERDICTS = {
    "calibrated": "as sure as it should be, as far as {images} can tell",
    "too sure": "too sure of itself",
    "too modest": "too modest",
    "uneven": "right on average, but too sure of some answers and too modest about others",
}


def calibration_sentence(calibration: dict[str, Any], accuracy: float, images: str) -> str:
    """Whether the network is too sure or not sure enough, on these images, and how much of it may be noise."""
    if calibration["verdict"] == "no numbers":
        return "Its probabilities are no numbers."
    how = VERDICTS[calibration["verdict"]].format(images=images)
    noise = calibration["noise"]
    return (
        f"On average it is {percent(calibration['mean_confidence'])} sure and {percent(accuracy)} right: {how}. Its "
        f"calibration error (ECE) is {percent(calibration['expected_calibration_error'])}; one that is exactly as sure as it "
        f"should be shows {percent(noise['error'])} on as many images, and seldom more than {percent(noise['highest_error'])}."
    )


def modesty_sentence(calibration: dict[str, Any], classes: int, smoothing: float, mixes: bool) -> str:
    """What in the training makes a network modest; empty where it is not, or nothing does."""
    if calibration["verdict"] != "too modest" or not (smoothing or mixes):
        return ""
    if not smoothing:
        return "It was trained on mixed images, whose targets are shares of two classes: that makes a network modest."
    surest = percent(1 - smoothing + smoothing / classes, 0)
    return f"It was trained with label smoothing of {smoothing:g}, to be {surest} sure of every answer: that makes it modest."


def temperature_sentence(calibration: dict[str, Any]) -> str:
    """What dividing the logits by a temperature does; empty where none was fitted."""
    if calibration["temperature"] is None:
        return ""
    before, after = calibration["expected_calibration_error"], calibration["scaled"]["expected_calibration_error"]
    low, high = calibration["temperature_interval"]
    said = (
        f"Dividing its logits by a temperature of {calibration['temperature']:.2f} (95{NBSP}% interval {low:.2f} to "
        f"{high:.2f}), fitted on {calibration['temperature_from']}, takes the calibration error from {percent(before)} to "
        f"{percent(after)}"
    )
    return f"{said}; no temperature at all would do as well." if low <= 1 <= high else f"{said}."


def abstention_sentence(row: dict[str, Any], images: str) -> str:
    """How much it answers, and how well, where it may leave out what it is not sure of; `row`: see `abstention.thresholds`."""
    if not row["answered"]:
        return (
            f"It is nowhere at least {percent(row['sureness'], 0)} sure on these {images}: there it would not answer."
        )
    interval = f"95{NBSP}% interval {span(row['accuracy_interval'])}"
    return (
        f"Asked only where it is at least {percent(row['sureness'], 0)} sure, it answers {percent(row['coverage'])} of these "
        f"{images} and is right in {percent(row['accuracy'])} of its answers ({interval})."
    )


def sets_sentence(abstention: dict[str, Any], classes: list[str]) -> str:
    """How many names it takes to have the right one among them as often as promised, and for which classes that fails."""
    sets = abstention["sets"]
    if sets is None:
        return f"How many names it takes to have the right one among them is not known: {abstention['sets_from']}."
    promised = percent(sets["promised"], 0)
    missed = [f"{quoted(classes[k])} {percent(sets['class_coverage'][k])}" for k in sets["worse"]]
    less = f" Less often than the others, by more than chance: {listed(missed)}." if missed else ""
    return (
        f"It may also name several classes: all with a probability of {percent(sets['least_probability'])} or more, so that in "
        f"{promised} of images like the {abstention['sets_from']} the right one is among them (conformal prediction). On the "
        f"test images it is in {percent(sets['coverage'])} (95{NBSP}% interval {span(sets['coverage_interval'])}), with "
        f"{number(sets['names'], 2)} names in the mean; one name in {percent(sets['one_name'])}, none in "
        f"{percent(sets['no_name'])}.{less}"
    )


def quiz_pictures_sentence(kept: int, seen: int) -> str:
    """At which size the quiz shows its pictures, and at which the network sees them.

    Args:
        kept: pixels of the pictures that the page carries, 0 without any.
        seen: pixels of the network's input, 0 where that is not known.
    """
    if not (kept and seen):
        return ""
    if kept < seen:
        return f"You see them at {kept} pixels, the network at {seen}."
    return f"You see them as the network does, at {seen} pixels."


def unlike_sentence(recipe: Config, of_loss: bool) -> str:
    """Why training and validation figures of a run differ beside what was learned; empty where they are measured alike."""
    changes = {
        "label smoothing": of_loss and recipe.loss.label_smoothing > 0,
        "weights of classes": of_loss and recipe.loss.class_weights is not None,
        "mixed images": recipe.augment.mixes,
        "augmentation": msgspec.structs.replace(recipe.augment, mixup=0.0, cutmix=0.0) != AugmentConfig(),
        "dropout": recipe.model.head == "paper" and recipe.model.dropout > 0,
    }
    changed = [what for what, there in changes.items() if there]
    sizes = [f"{size}" for size in dict.fromkeys(recipe.data.train_sizes)]
    at = f"on images of {listed([*sizes, str(recipe.data.image_size)])} pixels" if sizes else ""
    how = ", ".join(part for part in (f"with {listed(changed)}" if changed else "", at) if part)
    size = f" at {recipe.data.image_size} pixels" if sizes else ""
    return f"Not measured alike: training {how}, while the weights change; validation{size} without." if how else ""


def answers(rows: list[dict[str, Any]]) -> str:
    """A cumulative list in one line: each answer's share of the misses, and in brackets that of all so far."""
    said = [f"{row['name']} {percent(row['share'], 0)} ({percent(row['together'], 0)})" for row in rows]
    return ", ".join(said) or "never missed"


def doubtful_sentence(count: int, split: str) -> str:
    """What a doubtful label means."""
    if count == 0:
        return "The network contradicts no label with confidence."
    return (
        f"By confident learning, the network contradicts the labels of {images_of(count, split)}. Most of these are its own "
        "mistakes; those it is surest of stand first, and are worth a look."
    )


def duplicates_sentence(found: dict[str, dict[str, Any]], accuracy: dict[str, dict[str, int]]) -> str:
    """How many test images have a near-duplicate, where, how many were looked at, and the accuracy without them.

    Args:
        found, accuracy: see `vgg_ddp.analysis.data_quality`.
    """
    said = []
    for other, where in (("train", "a near-duplicate in a training"), ("test", "a near-duplicate in another test")):
        split = found[other]
        have = "has" if split["test_images"] == 1 else "have"
        count = f"{images_of(split['test_images'], 'test')} {have}" if split["test_images"] else "No test image has"
        labels = f", {number(split['other_labels'])} under another label" if split["other_labels"] else ""
        said.append(f"{count} {where} image{labels}.")
    sampled = [
        f"{number(found[name]['looked_at'])} of {number(found[name]['of'])} {which} images"
        for name, which in (("test", "test"), ("train", "training"))
    ]
    complete = all(split["looked_at"] == split["of"] for split in found.values())
    said.append("All were compared with all." if complete else f"Compared were {listed(sampled)}, evenly spread.")
    with_double, without = accuracy["with"], accuracy["without"]
    if with_double["images"] and without["images"]:
        said.append(
            f"The network names {percent(without['correct'] / without['images'])} of the {number(without['images'])} without a "
            f"double in training correctly, {percent(with_double['correct'] / with_double['images'])} of the "
            f"{number(with_double['images'])} with one."
        )
    if found["train"]["test_images"] > LOOKALIKES * found["test"]["looked_at"]:
        said.append("So many are hardly copies: in this data set many pictures look alike.")
    said.append(
        "Found by pixels: shifted by up to a tenth, mirrored, re-encoded or recoloured pictures; cropped ones are missed."
    )
    return " ".join(said)


def sureness_sentence(confidence: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> str:
    """Mean confidence [images] of right and of wrong answers; empty where all are right or all wrong."""
    if right.all() or not right.any():
        return ""
    return (
        f"On average the network is {percent(float(confidence[right].mean()), 0)} sure of its right answers "
        f"and {percent(float(confidence[~right].mean()), 0)} sure of its wrong ones."
    )
