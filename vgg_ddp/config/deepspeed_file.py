"""DeepSpeed's configuration, derived from ours and extended by a JSON file of the user's. Imports neither it nor torch."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from vgg_ddp.config.schema import Config
from vgg_ddp.errors import UserError

DERIVED = {
    "train_batch_size": "batch",
    "train_micro_batch_size_per_gpu": "batch and accumulation",
    "gradient_accumulation_steps": "accumulation",
    "managed_gradient_accumulation": "accumulation",
    "gradient_clipping": "optimizer.clip_norm",
    "bf16": "precision",
    "bfloat16": "precision",
    "fp16": "precision",
    "torch_autocast": "precision",
    "data_types": "precision",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "zero_allow_untested_optimizer": "optimizer",
    "zero_optimization.stage": "deepspeed.stage",
}
"""Keys of DeepSpeed that are derived, and the key of ours that decides each."""

REMOVED = (
    "amp",
    "compression_training",
    "curriculum_learning",
    "eigenvalue",
    "elasticity",
    "graph_harvesting",
    "nebula",
    "progressive_layer_drop",
    "quantize_training",
    "sparse_attention",
    "sparse_gradients",
)
"""Keys that DeepSpeed 0.19 no longer has."""

BUCKETS = {"reduce_bucket_size": 25 * 2**20 // 4}
"""Gradients reduced in one message: 25 MiB of float32, as with DDP. By default DeepSpeed keeps 2 GB for it."""

WHOLE_GRADIENTS = {"reduce_scatter": False}
"""Stages 1 and 2 send whole gradients either way; this saves one copy of them, which took 5 % of a step on a CPU."""

UNSUPPORTED = (
    "zero_optimization.offload_optimizer",
    "zero_optimization.offload_param",
    "zero_optimization.zenflow",
    "data_efficiency",
    "sequence_parallel_size",
    "tensor_parallel",
    "hybrid_engine",
)
"""Keys that would move the state, the data or the layers to where our checkpoints do not look for them."""


def read(config: Config) -> dict[str, Any]:
    """What the user's file adds; nothing where `deepspeed.config` is null.

    Raises:
        UserError: DeepSpeed is not installed; the file cannot be read, or sets a key that it must not.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError("engine=deepspeed needs DeepSpeed; pip install 'vgg_ddp[deepspeed]', or use engine=ddp")
    return {} if config.deepspeed.config is None else _read(Path(config.deepspeed.config))


def derive(config: Config, world_size: int) -> dict[str, Any]:
    """What `deepspeed.initialize` takes as `config`.

    Half precision is torch.autocast, as with DDP: parameters, batch statistics and optimizer state stay float32.

    Raises:
        UserError: see `read`.
    """
    extra = read(config)
    half = {"bf16": "bfloat16", "fp16": "float16"}.get(config.precision)
    derived: dict[str, Any] = {
        "train_batch_size": config.batch,
        "train_micro_batch_size_per_gpu": config.local_batch(world_size) // config.accumulation,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.optimizer.clip_norm or 0.0,
        "zero_allow_untested_optimizer": True,  # it has tested only Adam; any elementwise update rule is correct
        "steps_per_print": None,
        "torch_autocast": {"enabled": half is not None, **({"dtype": half} if half else {})},
    }
    stage = config.deepspeed.stage
    zero = {**(WHOLE_GRADIENTS if stage < 3 else {}), **BUCKETS, **extra.pop("zero_optimization", {}), "stage": stage}
    return {**extra, **derived, "zero_optimization": zero}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"deepspeed.config: {path} does not exist; give the path of a JSON file, or null") from None
    except OSError as error:
        raise UserError(f"deepspeed.config: {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # broken JSON, or no UTF-8
        raise UserError(f"deepspeed.config: {path} is not valid JSON: {error}") from None
    zero = found.get("zero_optimization", {}) if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(zero, dict):
        raise UserError(f"deepspeed.config: {path} and its zero_optimization must be JSON objects, {{...}}")
    for key in (*found, *(f"zero_optimization.{name}" for name in zero)):
        if key in DERIVED:
            raise UserError(f"deepspeed.config: {path} sets '{key}'; leave it out, {DERIVED[key]} decides it")
        if key in REMOVED:
            raise UserError(f"deepspeed.config: {path} sets '{key}', which DeepSpeed has removed; leave it out")
        if key in UNSUPPORTED:
            raise UserError(f"deepspeed.config: {path} sets '{key}', which vgg_ddp does not support; leave it out")
    return found
