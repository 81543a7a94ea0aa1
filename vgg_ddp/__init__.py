"""Distributed training of the VGG networks, and an honest look at what they learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vgg_ddp.library import (
        build_network,
        evaluation_batches,
        load_config,
        load_network,
        open_dataset,
        run_evaluation,
        run_training,
        show_report,
        training_batches,
        write_report,
    )

__all__ = [
    "build_network",
    "evaluation_batches",
    "load_config",
    "load_network",
    "open_dataset",
    "run_evaluation",
    "run_training",
    "show_report",
    "training_batches",
    "write_report",
]


def __getattr__(name: str) -> object:
    """Look up a name of `vgg_ddp.library` only when it is used, since that module imports torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vgg_ddp import library

    return getattr(library, name)
