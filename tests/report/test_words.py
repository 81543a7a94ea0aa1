"""Names, shares and durations in words."""

from __future__ import annotations

import pytest

from vgg_ddp.report import words


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cat", "a cat"),
        ("airplane", "an airplane"),
        ("unicycle", "a unicycle"),
        ("hourglass", "an hourglass"),
        ("8", "“8”"),
        ("no", "“no”"),
        ("bus", "a bus"),
        ("roses", "“roses”"),
        ("n01440764", "“n01440764”"),
        ("Baum", "“Baum”"),
    ],
)
def test_named(name: str, said: str) -> None:
    assert words.named(name) == said


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.786, "78.6 %"),
        (0.99996, "99.996 %"),
        (0.0004, "0.04 %"),
        (-5.5e-17, "0 %"),
        (None, "not recorded"),
    ],
)
def test_percent_rounds_to_all_or_none_only_where_true(share: float | None, said: str) -> None:
    assert words.percent(share).replace(words.NBSP, " ") == said


@pytest.mark.parametrize(
    ("count", "names", "said"),
    [(1, ("miss", "misses"), "1 miss"), (1200, ("miss", "misses"), "1,200 misses"), (0, ("image",), "0 images")],
)
def test_counts_of_things_take_their_plural(count: int, names: tuple[str, ...], said: str) -> None:
    assert words.counted(count, *names) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(3.21, "3.2 s"), (59.99, "1 min 0 s"), (216.4, "3 min 36 s"), (7265, "2 h 1 min")]
)
def test_duration(seconds: float, said: str) -> None:
    assert words.duration(seconds).replace(words.NBSP, " ") == said
