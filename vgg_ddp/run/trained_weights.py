"""Where trained weights lie that another training begins with (`model.initialize_from`)."""

from __future__ import annotations

from pathlib import Path

from vgg_ddp.config import load
from vgg_ddp.errors import UserError
from vgg_ddp.run.directory import RunDirectory, chosen_checkpoint


def find_weights(name: str) -> Path:
    """The file, or the folder of the checkpoint, that `name` stands for: of a run, the one that it evaluates.

    Raises:
        UserError: there is nothing of that name, or it is neither a run, a checkpoint nor a file.
    """
    path = Path(name)
    if path.is_file() or (path / "manifest.json").is_file():
        return path
    run = RunDirectory(path)
    if run.config.is_file():
        return chosen_checkpoint(run, load(run.config).evaluate.checkpoint)
    reason = "is neither a run (it has no config.yaml) nor a checkpoint" if path.is_dir() else "does not exist"
    raise UserError(
        f"model.initialize_from: {name} {reason}; give a run, a checkpoint, or a file of weights (.pth, .safetensors)"
    )
