"""The figures of a session's stages in one table."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

Row = dict[str, Any]
UNITS = {
    "flop_per_second": (1e12, "TFLOP/s"),
    "bytes_per_second": (1e9, "GB/s"),
    "images_per_second": (1.0, "images/s"),
    "seconds": (1.0, "s"),
    "epochs": (1.0, "epochs"),
    "pflop": (1.0, "PFLOP"),
}


def table(folder: Path, names: list[str]) -> str:
    """A table in Markdown of the stages with these names that have a result in `folder`."""
    lines = ["| stage | what | result | | predicted | measured | MFU |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for name in names:
        file = folder / f"{name}.json"
        if file.is_file():
            rows = json.loads(file.read_text())["rows"]
            lines += [f"| {name} | {' | '.join(cells)} |" for cells in _cells(rows)]
    for file in (folder / name / "kernels.json" for name in names):
        if file.is_file():
            lines += [
                "",
                f"| {file.parent.name}: the longest kernels | ms | calls | share |",
                "| --- | --- | --- | --- |",
            ]
            lines += [
                f"| `{kernel['name'][:100]}` | {kernel['seconds'] * 1e3:.3f} | {kernel['calls']} | {kernel['share']:.1%} |"
                for kernel in json.loads(file.read_text())
            ]
    return "\n".join(lines) + "\n"


def _cells(rows: list[Row]) -> list[list[str]]:
    outcomes = Counter(row["outcome"] for row in rows if "outcome" in row)
    found = [[outcome, str(number), "tests", "", "", ""] for outcome, number in outcomes.items()]
    for row in rows:
        if row.get("outcome") == "failed":
            found.append([row["name"], "failed", next(iter(row.get("reason", "").splitlines()), ""), "", "", ""])
        elif "left_out" in row:
            found.append([row["name"], "left out", row["left_out"], "", "", ""])
        elif "unit" in row:
            scale, unit = UNITS[row["unit"]]
            value = row[row["unit"]] / scale
            shown = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
            found.append([row["name"], shown, unit, *_step(row)])
    return found


def _step(row: Row) -> list[str]:
    """What a step was to take, what it took, and its MFU."""
    if "predicted" not in row:
        return ["", "", ""]
    return [f"{row['predicted']['seconds'] * 1e3:.2f} ms", f"{row['step_seconds'] * 1e3:.2f} ms", f"{row['mfu']:.2f}"]
