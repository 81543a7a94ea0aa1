"""A process that saves and prunes for ever, to be killed (see test_checkpoint)."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from pathlib import Path

from vgg_ddp.run import checkpoint


def write_for_ever(folder: Path, keep: int, same_step: bool) -> None:
    """Write checkpoints of many files, so that there is much time to die in; print the number of each once it is done."""
    for number in itertools.count(1):
        files = {f"{i}.bin": f"{number} {i}".encode() for i in range(20)}
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        files["manifest.json"] = json.dumps({"sha256": hashes}).encode()
        checkpoint.write(folder, files, 1 if same_step else number)
        checkpoint.prune(folder, keep)
        os.write(1, f"{number}\n".encode())
