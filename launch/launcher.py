"""The interface of a launcher."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from vgg_ddp.config import Config


@dataclass(frozen=True)
class Launcher:
    """A way to start a training.

    Attributes:
        summary: one line for `--help`.
        add_options: adds its own options to a parser that has CONFIG, key=value overrides, --nodes, --nproc and --dry-run.
        start: starts, submits or, with `options.dry_run`, prints; the exit code. The configuration has been checked.
    """

    summary: str
    add_options: Callable[[argparse.ArgumentParser], None]
    start: Callable[[argparse.Namespace, Config], int]
