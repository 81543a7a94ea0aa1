"""A process that saves and prunes forever, to be killed (see test_checkpoint)."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from pathlib import Path

from vgg_ddp.run import checkpoint


def write_for_ever(folder: Path, keep: int, same_step: bool) -> None:
    """Write checkpoints large enough to be killed in the middle; print the number of each once it is written."""
    for number in itertools.count(1):
        files = {name: f"{number} ".encode() * 20_000 for name in (*checkpoint.NAMES, *checkpoint.OPTIONAL_NAMES)}
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        files["manifest.json"] = json.dumps({"sha256": hashes}).encode()
        written = checkpoint.write(folder, files, 1 if same_step else number)
        checkpoint.prune(folder, keep, written)
        os.write(1, f"{number}\n".encode())
