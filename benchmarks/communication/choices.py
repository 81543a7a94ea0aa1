"""The configurations that are compared, by name: keys of `communication`."""

from __future__ import annotations

from typing import Any

ALONE = "one rank"
CHOICES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bucket auto": {"bucket_mb": "auto"},
    "bf16": {"compression": "bf16"},
    "powersgd 2": {"compression": "powersgd", "powersgd_warmup_steps": 0, "powersgd_rank": 2},
    "powersgd 4": {"compression": "powersgd", "powersgd_warmup_steps": 0, "powersgd_rank": 4},
    "powersgd 8": {"compression": "powersgd", "powersgd_warmup_steps": 0, "powersgd_rank": 8},
    "powersgd 12": {"compression": "powersgd", "powersgd_warmup_steps": 0, "powersgd_rank": 12},
    "powersgd 16": {"compression": "powersgd", "powersgd_warmup_steps": 0, "powersgd_rank": 16},
    "local SGD 16": {"synchronise_every": 16, "compression": "bf16"},
    "local SGD 128": {"synchronise_every": 128, "compression": "bf16"},
    "DiLoCo 16": {
        "synchronise_every": 16,
        "outer_learning_rate": 0.7,
        "outer_momentum": 0.9,
        "compression": "bf16",
    },
    "split": {"split_head": "all"},
    "split, bf16": {"split_head": "all", "compression": "bf16"},
    "split, powersgd 2": {
        "split_head": "all",
        "compression": "powersgd",
        "powersgd_warmup_steps": 0,
        "powersgd_rank": 2,
    },
}
