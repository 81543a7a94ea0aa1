"""docs/tutorial.ipynb: made from docs/tutorial.md, and executed in an empty folder.

`python -m tests.test_notebook > docs/tutorial.ipynb` regenerates it.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vgg_ddp
from tests.test_architecture import ROOT
from vgg_ddp.errors import UserError

SMALL = ["data.train_sizes=[]", "batch=32", "epochs=0.1", "min_steps=1", "device=cpu", "threads=1", "precision=fp32"]
SMALL += ["analysis.budget=none"]
FIRST = """Made from tutorial.md. It runs from a folder with `configs/` of the checkout in it; training takes
minutes on two CPU cores, and the report is shown below its cell."""
TRAIN = re.compile(r"vgg-ddp train (\S+\.yaml) (.*)")
BLOCK = re.compile(r"```(sh|python)\n(.*?)```", re.DOTALL)


def notebook() -> str:
    """The tutorial's page as a notebook: its commands and its Python as cells, without output."""
    parts = BLOCK.split((ROOT / "docs" / "tutorial.md").read_text())
    cells = [_text(FIRST), _text(parts[0])]
    for kind, code, text in zip(parts[1::3], parts[2::3], parts[3::3]):
        cells += [_code(code if kind == "python" else _commands(code)), _text(text)]
    cells = [cell for cell in cells if "".join(cell["source"]).strip()]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _text(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": text.strip().splitlines(keepends=True)}


def _code(text: str) -> dict[str, Any]:
    source = text.strip().splitlines(keepends=True)
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": source}


def _commands(text: str) -> str:
    """Shell commands as a notebook has them; a training runs in the notebook itself, and its report is shown."""
    lines = []
    for line in text.splitlines():
        training = TRAIN.fullmatch(line)
        if training:
            path, words = training[1], ", ".join(f'"{word}"' for word in training[2].split())
            lines += [f'run = vgg_ddp.run_training("{path}", {words})', "vgg_ddp.show_report(run)"]
        else:
            lines.append(f"!{line}")
    return "\n".join(lines)


def test_the_notebook_is_current() -> None:
    page = ROOT / "docs" / "tutorial.ipynb"
    assert page.read_text() == notebook(), "run: python -m tests.test_notebook > docs/tutorial.ipynb"
    assert page.read_text().count("run_training") == 1


def test_a_report_is_shown_whole_and_apart(tmp_path: Path) -> None:
    page = tmp_path / "report" / "index.html"
    with pytest.raises(UserError, match="has no report; vgg-ddp report"):
        vgg_ddp.show_report(tmp_path)
    page.parent.mkdir()
    page.write_text('<!doctype html><p title="a">a & b</p>', encoding="utf-8")
    shown = vgg_ddp.show_report(tmp_path)
    (frame,) = re.findall(r'srcdoc="(.*?)"', shown._repr_html_(), re.DOTALL)
    assert html.unescape(frame) == page.read_text() and shown.page == page
    assert 'sandbox="allow-scripts"' in shown._repr_html_()


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("ranks", [1, 2])
def test_it_runs_from_an_empty_folder(ranks: int, few_digits: Path, tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "photos").mkdir()
    shutil.copy(ROOT / "docs" / "quiz.png", tmp_path / "photos")
    whole = nbformat.reads(notebook(), as_version=4)
    nbformat.validate(whole)
    small = [f"data.source={few_digits}", *SMALL, f"nproc={ranks}"]
    for cell in whole.cells:
        if cell.cell_type == "code":
            cell.source = cell.source.replace('["data.source=digits", "data.train_sizes=[]"]', str(small))
            cell.source = cell.source.replace('"data.source=digits", ', "".join(f'"{word}", ' for word in small))
    if ranks == 2:  # only the training differs
        last = next(k for k, cell in enumerate(whole.cells) if "run_training" in cell.source)
        whole.cells = [
            cell for cell in whole.cells[: last + 1] if "import" in cell.source or "run_training" in cell.source
        ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    client = nbclient.NotebookClient(
        whole, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    # With this variable of pytest's set, a kernel does not show what its children print below the cell.
    there = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    client.execute(env={**there, "PATH": path, "IPYTHONDIR": str(tmp_path / "ipython")})
    outputs = [output for cell in whole.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    (frame,) = [o.data["text/html"] for o in outputs if o.output_type == "execute_result" and "text/html" in o.data]
    assert html.unescape(frame).count("<!doctype html>") == 1
    assert "test accuracy" in printed and "Traceback" not in printed and ("says: " in printed) == (ranks == 1)
    assert (tmp_path / "runs/first/report/index.html").is_file()
    if ranks == 1:
        assert_its_python_prints(printed.splitlines(), tmp_path / "runs/first")
        assert list((tmp_path / "runs/first").glob("images/*/index.html"))


def assert_its_python_prints(lines: list[str], run: Path) -> None:
    """The data set, the network, and what its run answers."""
    assert any(line.startswith("train: 160 images, of each class [16, 16,") for line in lines)
    assert any(line.startswith("test: 40 images") for line in lines)
    assert "9,228,362 parameters; (32, 3, 32, 32) to (32, 10)" in lines
    label, answer = ([line.split()[1:] for line in lines if line.startswith(word)] for word in ("is: ", "says: "))
    with np.load(run / "evaluation/predictions.npz") as arrays:
        assert [label, answer] == [[[str(k) for k in arrays[name][:9]]] for name in ("label", "prediction")]
    assert sum(" of 4, 95 % interval " in line for line in lines) == 10


if __name__ == "__main__":
    print(notebook(), end="")
