"""Names and numbers in words: what the sentences of every page are made of."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

NBSP = "\u00a0"  # a number and its unit stay on one line
DASH = "\u2013"  # in a table, for what is not there
UNKNOWN = "not recorded"
LONGEST_FILE_NAME = 100  # letters

# Said with the other article than their first letter suggests.
_SOUNDS_LIKE_A = re.compile(r"(uni|eu|ewe|one\b|use|usu|uk|ut[eio])", re.IGNORECASE)
_SOUNDS_LIKE_AN = re.compile(r"(hour|honest|honour|heir)", re.IGNORECASE)
_NO_THING = re.compile("yes|no|true|false|none|other|unknown|on|off|good|bad|left|right|positive|negative|(ab)?normal")


def shown(name: str) -> str:
    """`name` without what a page must not carry: control characters, text-direction overrides, lone surrogates.

    A name with letters that run from right to left is isolated, so that it leaves the text around it in order.
    """
    joiners = "\u200c\u200d"  # not "printable", but part of the spelling in Persian and Hindi
    kept = (c if c.isprintable() or c in joiners or unicodedata.category(c) == "Zs" else "\ufffd" for c in name)
    text = "".join(kept)  # Zs: spaces of other widths
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
    return f"{text}{NBSP}%" if float(text) not in (0, 100) else f"{float(text) + 0.0:.0f}{NBSP}%"  # + 0.0: no "-0"


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
    return counted(count, f"{split} image")


def counted(count: int, one: str, several: str = "") -> str:
    """A count of things, e.g. "1 miss"; `several` is what more of them are called, where that is not `one` with an s."""
    return f"{number(count)} {one if count == 1 else several or f'{one}s'}"


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


def quoted(name: str) -> str:
    """A name beside a figure or in a sentence: one word as it is ("animals"), all others in quotation marks ("8")."""
    return name if re.fullmatch(r"[a-z-]+", name) else f"\u201c{name}\u201d"
