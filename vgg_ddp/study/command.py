"""`vgg-ddp study`: from the study's file to its page."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import msgspec
import yaml
from filelock import Timeout

from vgg_ddp.config import Config, dump, load, with_absolute_path
from vgg_ddp.errors import EXIT_OK, EXIT_STOPPED, Signalled, UserError
from vgg_ddp.run.console import say
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.files import hold, lock_at, replace_file
from vgg_ddp.study import definition as definitions
from vgg_ddp.study import running
from vgg_ddp.study.definition import Cell, Definition
from vgg_ddp.study.trials import Found, Trials

MAY_GROW = ("seeds", "trials", "side_by_side", "pruner", "test")  # of a study that was begun


def run(path: Path, words: list[str], out: Path | None, start: running.Start = running.start_command) -> int:
    """Train every cell of the study in the file `path` that is not trained yet, and write its page; the exit code.

    Args:
        words: more overrides of the base, for all cells.
        out: the study's folder; studies/NAME by default.

    Raises:
        UserError: a mistake in the file or in any cell's configuration, before anything is trained; another study in
            the folder, or the same one, which runs; or no cell that came to its end.
    """
    definition = definitions.read(path)
    overrides = [with_absolute_path(word) for word in (*definition.overrides, *words)]
    definition = msgspec.structs.replace(definition, overrides=overrides)
    folder = out or Path("studies") / path.stem
    base = definitions.found_base(definition, path)
    cells = definitions.cells(definition, base)
    definitions.require_optuna()
    with claimed(folder, "definition.yaml"):
        with RunDirectory(folder).writing():
            _begin(folder, definition, definitions.base_text(base))
        config = load(folder / "base.yaml", definition.overrides)
        trials = Trials(folder, definition)
        left = [one.cell for one in trials.found(cells) if one.ending in ("waiting", "running", "failed")]
        say(_plan(definition, cells, left, folder))
        _prepare(config, left)

        def write_page() -> None:
            _finish(folder, definition, trials.found(cells))

        work = running.Cells(
            folder,
            definition,
            trials,
            [*definition.overrides, *_group(config, folder)],
            running.places(config, definition.side_by_side),
            write_page,
            start,
        )
        try:
            work.train(left)
        except Signalled:
            ended = sum(one.ending not in ("waiting", "running") for one in trials.found(cells))
            again = shlex.join(["vgg-ddp", "study", str(path), *words, *(["--out", str(out)] if out else [])])
            say(f"vgg-ddp: stopped on request after {ended} of {len(cells)} cells; to go on: {again}")
            return EXIT_STOPPED
        found = trials.found(cells)
        if not any(one.value is not None for one in found):
            why = next((f"{one.cell.name}: {one.why}" for one in found if one.why), "all were given up")
            raise UserError(f"no cell of {folder} came to its end; {why}")
        _finish(folder, definition, found)
    say(f"the best configuration: {folder / 'best.yaml'}\nreport: {folder / 'report' / 'index.html'}")
    return EXIT_OK


def report(folder: Path) -> Path:
    """Write the page of a study again; its path.

    Raises:
        UserError: the study runs, Optuna is not installed, a file of the study is damaged, or the page cannot be written.
    """
    with claimed(folder, "definition.yaml", instead="it writes its page itself, whenever a training has ended"):
        definition = definitions.read(folder / "definition.yaml")
        cells = definitions.cells(definition, folder / "base.yaml")
        return _finish(folder, definition, Trials(folder, definition).found(cells))


@contextlib.contextmanager
def claimed(folder: Path, mark: str, instead: str = "wait for it, or choose another --out FOLDER") -> Iterator[None]:
    """Make the folder, and hold it alone until the end.

    Args:
        mark: the file by which one that was begun earlier is known.
        instead: what to do where it is held.

    Raises:
        UserError: it cannot be made, another study holds it, or it holds something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / mark).is_file() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise UserError(f"{folder} holds something else than a study; choose another folder with --out FOLDER")
        lock = lock_at(folder / ".lock")
        hold(lock, 0, say)
    except Timeout:
        raise UserError(f"{folder} is in use by another study; {instead}") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}; choose another --out FOLDER") from None
    try:
        yield
    finally:
        lock.release()


def _begin(folder: Path, definition: Definition, base: str) -> None:
    """Record the study's definition, or check that it is the study that was begun there, which may have grown.

    Raises:
        UserError: it is another study.
    """
    kept = msgspec.structs.replace(definition, base="base.yaml")
    if (folder / "definition.yaml").is_file() and (folder / "base.yaml").is_file():
        before = msgspec.to_builtins(definitions.read(folder / "definition.yaml"))
        same = {key: value for key, value in msgspec.to_builtins(kept).items() if key not in MAY_GROW}
        changed = [key for key, value in same.items() if before[key] != value]
        if (folder / "base.yaml").read_text(encoding="utf-8") != base:
            changed.append("base")
        if changed:
            raise UserError(
                f"{folder} holds a study with another {changed[0]}; of one that was begun only {', '.join(MAY_GROW)} may "
                "change: choose another --out FOLDER"
            )
    replace_file(folder / "definition.yaml", yaml.safe_dump(msgspec.to_builtins(kept), sort_keys=False).encode())
    replace_file(folder / "base.yaml", base.encode())


def _plan(definition: Definition, cells: list[Cell], left: list[Cell], folder: Path) -> str:
    configurations = len({cell.configuration for cell in cells})
    done = f", {len(cells) - len(left)} of them done" if len(left) < len(cells) else ""
    return (
        f"{folder}: {configurations} configurations of {', '.join(definition.keys)}, {definition.seeds} seeds each: "
        f"{len(cells)} trainings{done}, {definition.side_by_side} at once"
    )


def _prepare(config: Config, left: list[Cell]) -> None:
    """Prepare the data set once, not in each of several trainings that begin at once."""
    if left:
        from vgg_ddp import preflight

        preflight.prepare_data(config)


def _group(config: Config, folder: Path) -> list[str]:
    """The W&B group that the cells share, unless one was asked for."""
    if config.tracking.group is not None or os.environ.get("WANDB_RUN_GROUP"):
        return []
    return [f"tracking.group={folder.resolve().name}"]


def _finish(folder: Path, definition: Definition, found: list[Found]) -> Path:
    """Write the page, STUDY/summary.json and STUDY/best.yaml from what there is so far; the page."""
    from vgg_ddp.study import page, summary

    told = summary.summarise(folder, definition, found)
    with RunDirectory(folder).writing():
        replace_file(folder / "summary.json", msgspec.json.format(msgspec.json.encode(told)) + b"\n")
        if told.best is not None and all(one.ending not in ("waiting", "running") for one in found):
            best = next(one.cell for one in found if one.cell.configuration == told.best)
            changes = [word for word in best.words if not word.startswith("seed=")]
            place = f"run.dir=runs/{folder.resolve().name}-best"
            text = f"# The best of the study {folder.resolve().name}: {', '.join(changes)}\n"
            config = load(folder / "base.yaml", [*definition.overrides, *changes, place])
            replace_file(folder / "best.yaml", (text + dump(config)).encode())
    return page.write(folder, definition, found, told)
