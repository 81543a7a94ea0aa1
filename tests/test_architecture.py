"""Imports between the rooms of vgg_ddp go one way, without cycles; the root stays small."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Bottom up: a room imports itself and those before it. The commands in the root import all.
ROOMS = [
    "errors",
    "randomness",
    "cores",
    "config",
    "run",
    "data",
    "augment",
    "model",
    "optim",
    "distributed",
    "loaders",
    "engines",
]
ROOMS += ["training", "analysis", "evaluation", "trackers", "report", "export"]
COMMANDS = ["preflight", "train", "evaluate", "doctor", "cli", "library", "study", "__main__"]


def modules(package: str) -> dict[str, Path]:
    """The files of a package by the names under which they are imported."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / package).rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in files.items()}


OURS = modules("vgg_ddp")


def imported(path: Path, at_import: bool = False) -> set[str]:
    """The modules of vgg_ddp that a file imports: all, or only those that its own import imports.

    The other imports are inside functions or under TYPE_CHECKING.
    """
    found = set()
    for node in statements(ast.parse(path.read_text())) if at_import else ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno} is a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in OURS else str(node.module) for name in names}
    return found


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported: not the bodies of functions, nor of `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from statements(child)


def room(module: str) -> str:
    """The first name below vgg_ddp; empty for vgg_ddp/__init__.py."""
    return module.partition(".")[2].partition(".")[0]


def test_every_room_is_known() -> None:
    assert {room(module) for module in OURS} - {"", *ROOMS, *COMMANDS} == set()


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_itself_and_rooms_below(name: str) -> None:
    below = {"", *ROOMS[: ROOMS.index(name) + 1]}
    edges = [(module, other) for module in OURS if room(module) == name for other in imported(OURS[module])]
    assert [f"{module} imports {other}" for module, other in edges if other in OURS and room(other) not in below] == []


def test_no_modules_import_one_another_in_a_circle() -> None:
    graph = {name: imported(path, at_import=True) - {name} for name, path in OURS.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_the_root_has_at_most_eight_modules() -> None:
    assert len([path for path in (ROOT / "vgg_ddp").glob("*.py") if not path.name.startswith("__")]) <= 8


def test_the_newcomer_s_path_has_at_most_1800_lines() -> None:
    """Counted by the command in CONTRIBUTING.md."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    command = page[page.index("    wc -l ") :].split("\n\n")[0]
    counted = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines, name = counted.splitlines()[-1].split()
    assert name == "total" and int(lines) <= 1800, counted


def test_vgg_ddp_imports_neither_launchers_nor_benchmarks() -> None:
    names = {name.partition(".")[0] for path in OURS.values() for name in imported(path)}
    assert names.isdisjoint({"launch", "benchmarks", "tests"})


@pytest.mark.processes
def test_training_imports_no_report_tracker_or_benchmark_and_asks_for_no_gpu() -> None:
    """A GPU query would not survive the fork of a rank; so the modules imported later must not make one either."""
    code = "import json, sys, torch; torch._C._cuda_getDeviceCount = torch.cuda.device_count = None; import vgg_ddp.train; "
    code += "print(json.dumps(sorted(sys.modules))); from vgg_ddp.distributed.fork_server import LATER; "
    code += "[__import__(name) for name in LATER]"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names = json.loads(done.stdout.splitlines()[-1])
    assert "vgg_ddp.train" in names
    unwanted = ("vgg_ddp.report", "vgg_ddp.trackers", "vgg_ddp.export", "benchmarks", "launch", "matplotlib", "jinja2")
    assert [name for name in names if name.startswith(unwanted)] == []


def test_the_page_on_architecture_has_a_line_for_each_file() -> None:
    """Except for `__init__` and `__main__`, most of which only name what a package is."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    parts = re.split(r"^\*\*`([a-z_/]+/)`\*\*", page, flags=re.MULTILINE)[1:]
    named = [
        folder + file
        for folder, text in zip(parts[::2], parts[1::2])
        for file in re.findall(r"^\| `([a-z_/]+\.py)` \|", text, re.MULTILINE)
    ]
    folders = [ROOT / "vgg_ddp", ROOT / "launch", ROOT / "benchmarks"]
    files = {path.relative_to(ROOT).as_posix() for folder in folders for path in folder.rglob("*.py")}
    assert len(named) == len(set(named)) and set(named) <= files
    assert {file for file in files - set(named) if not Path(file).name.startswith("__")} == set()
