"""`vgg-ddp train`, started as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.processes import children, ranks_of

ROOT = Path(__file__).resolve().parents[2]
FAULTS = ROOT / "tests/support/faults"


class Launched:
    """A training in processes of its own, whose output is kept.

    Attributes:
        process: the command itself, which supervises the ranks.
    """

    def __init__(
        self,
        recipe: Path,
        run: Path,
        size: int,
        *words: str,
        fault: dict[str, object] | None = None,
        core: int | None = None,
    ) -> None:
        """Start it, with `size` ranks.

        Args:
            fault: see `tests.support.faults`.
            core: the only core that all of its processes may run on.
        """
        faults = {"PYTHONPATH": f"{FAULTS}:{ROOT}", "FAULT": json.dumps(fault)} if fault else {}
        bound = [] if core is None else ["taskset", "--cpu-list", str(core)]
        command = [*bound, sys.executable, "-m", "vgg_ddp", "train", str(recipe)]
        self._output = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [*command, f"run.dir={run}", f"nproc={size}", *words],
            cwd=ROOT,
            env=os.environ | faults,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
        )

    def said(self) -> str:
        """The output so far, read without moving the file position at which the processes write."""
        file = self._output.fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")

    def ranks(self) -> list[int]:
        """Its ranks, and the process that they are forked from."""
        return [*children(self.process.pid), *ranks_of(self.process.pid)]

    def end(self) -> tuple[int, str]:
        """Its exit code, and all that it said."""
        code = self.process.wait(600)
        self._output.seek(0)
        said = self._output.read()
        self._output.close()
        return code, said
