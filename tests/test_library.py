"""`import vgg_ddp`: what it has, what it costs, and the pages that tell of it.

`python -m tests.test_library > docs/api.md` writes the list of its names anew.
"""

from __future__ import annotations

import inspect
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import vgg_ddp
from tests.support.rank_processes import program
from tests.test_architecture import OURS, ROOT, imported

SMALL = ["batch=32", "epochs=0.1", "min_steps=1", "device=cpu", "threads=1", "nproc=1", "precision=fp32"]


def api_page() -> str:
    """Each name with its signature and docstring."""
    parts = [
        "# What `import vgg_ddp` has\n\nMade from the docstrings. How it all goes together: [library.md](library.md).\n"
    ]
    for name in vgg_ddp.__all__:
        function = getattr(vgg_ddp, name)
        signature = str(inspect.signature(function)).replace("'", "")
        parts.append(
            f"## {name}\n\n```python\nvgg_ddp.{name}{signature}\n```\n\n```text\n{inspect.getdoc(function)}\n```\n"
        )
    return "\n".join(parts)


def script(page: str) -> str:
    """The lines of a page's Python blocks."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL))


def test_the_page_of_names_is_current() -> None:
    assert (ROOT / "docs/api.md").read_text() == api_page(), "run: python -m tests.test_library > docs/api.md"


def test_importing_it_imports_nothing_that_takes_time() -> None:
    assert imported(OURS["vgg_ddp"], at_import=True) == {"__future__", "typing"}
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        vgg_ddp.trian  # noqa: B018


def run(page: str, folder: Path, dataset: Path) -> list[str]:
    """The lines that a page's Python prints in `folder`, trained on few images for a step."""
    text, words = script(page), '["data.source=digits", "data.train_sizes=[]"]'
    assert text.count(words) == 1
    small = [f"data.source={dataset}", "data.train_sizes=[]", *SMALL]
    (folder / "script.py").write_text(text.replace(words, str(small)))
    done = program("script", folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.processes
def test_the_pages_scripts_run(few_digits: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    lines = run("library.md", tmp_path, few_digits)
    assert len(script("library.md").splitlines()) <= 45
    assert lines[0] == "vgg11: (32, 3, 32, 32) to (32, 10), classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    first, second = (line for line in lines if line.startswith("right: "))
    assert first == second and first.endswith("of 40")
    page = "runs/script/report/index.html"
    assert lines[-1] == f"report: {page}" and (tmp_path / page).is_file()

    (tmp_path / "runs/first").symlink_to(tmp_path / "runs/script")  # which the tutorial trains by a command
    lines = run("tutorial.md", tmp_path, few_digits)
    assert lines[0].startswith("train: 160 images, of each class [16, 16,") and lines[1].startswith("test: 40 images")
    assert lines[2].startswith("9,228,362 ") and lines[2].endswith("parameters; (32, 3, 32, 32) to (32, 10)")
    label, answer = ([line.split()[1:] for line in lines if line.startswith(word)] for word in ("is:", "says:"))
    with np.load(tmp_path / "runs/first/evaluation/predictions.npz") as arrays:
        assert [label, answer] == [[[str(k) for k in arrays[name][:9]]] for name in ("label", "prediction")]
    assert sum(" of 4, 95 % interval " in line for line in lines) == 10


if __name__ == "__main__":
    print(api_page(), end="")
