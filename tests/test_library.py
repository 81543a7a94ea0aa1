"""`import vgg_ddp`: its names, the cost of the import, and the pages about it.

`python -m tests.test_library > docs/api.md` regenerates the list of its names.
"""

from __future__ import annotations

import inspect
import re
import shutil
from pathlib import Path

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


def script() -> str:
    """The lines of the page's Python blocks."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(), re.DOTALL))


def test_the_page_of_names_is_current() -> None:
    assert (ROOT / "docs/api.md").read_text() == api_page(), "run: python -m tests.test_library > docs/api.md"


def test_importing_it_imports_nothing_that_takes_time() -> None:
    assert imported(OURS["vgg_ddp"], at_import=True) == {"__future__", "typing"}
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        vgg_ddp.trian  # noqa: B018


@pytest.mark.processes
def test_the_page_s_script_runs(few_digits: Path, tmp_path: Path) -> None:
    """Trained on few images for a step."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    text, words = script(), '["data.source=digits", "data.train_sizes=[]"]'
    assert text.count(words) == 1 and len(text.splitlines()) <= 45
    small = [f"data.source={few_digits}", "data.train_sizes=[]", *SMALL]
    (tmp_path / "script.py").write_text(text.replace(words, str(small)))
    done = program("script", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "vgg11: (32, 3, 32, 32) to (32, 10), classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    first, second = (line for line in lines if line.startswith("right: "))
    assert first == second and first.endswith("of 40")
    page = "runs/script/report/index.html"
    assert lines[-1] == f"report: {page}" and (tmp_path / page).is_file()


if __name__ == "__main__":
    print(api_page(), end="")
