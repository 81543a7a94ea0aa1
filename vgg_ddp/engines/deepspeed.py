"""DeepSpeed: optimizer state, gradients and parameters partitioned over the ranks (ZeRO; see `zero`)."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import sys
import warnings
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor, nn

from vgg_ddp.config import Config
from vgg_ddp.config.deepspeed_file import derive
from vgg_ddp.distributed.world import World
from vgg_ddp.engines import rank_state
from vgg_ddp.engines.flat_weights import FlatWeights
from vgg_ddp.engines.zero import LossScale, Partition, PartitionedParameters
from vgg_ddp.errors import UserError
from vgg_ddp.optim import losses, optimizers
from vgg_ddp.optim.precision import autocast


class DeepSpeedEngine:
    """See `vgg_ddp.engines.Engine`.

    Parameters and optimizer state are float32 at every stage; the forward pass is torch.autocast's, as with DDP.
    """

    def __init__(self, config: Config, network: nn.Module, world: World) -> None:
        settings = derive(config, world.size)
        self._world, self._kinds = world, optimizers.STATE[config.optimizer.name]
        self._criterion = losses.build(config.loss, world.device)
        self._autocast = autocast(config.precision, world.device)
        self.measured: dict[str, Any] = {}
        self._network = network
        self._empty = copy.deepcopy(network).to("meta")
        self._whole: nn.Module | None = None
        # ZeRO 3 frees each parameter's memory and allocates it again: a view of it would keep it.
        self._flat = FlatWeights(network, wanted=config.channels_last and config.deepspeed.stage < 3)
        self._last = True
        rule = msgspec.structs.replace(config.optimizer, implementation="torch")
        self.optimizer = optimizers.build(dict(network.named_parameters()), rule)
        if config.deepspeed.stage:
            self.optimizer.state.clear()  # each rank keeps that of its partition
        self._engine = _initialize(network, self.optimizer, settings, config, world)
        self._partition: Partition | None = None
        if config.deepspeed.stage:
            kind = PartitionedParameters if config.deepspeed.stage == 3 else Partition
            self._partition = kind(self._engine.optimizer, self.optimizer, network, world)
        self._scaling = _loss_scaling(self._engine, self._partition) if config.precision == "fp16" else None

    def forward(self, images: Tensor, labels: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        """DeepSpeed autocasts the network itself; the loss is here."""
        self._last = last
        logits = self._engine(images)
        with self._autocast:
            return self._criterion(logits, labels), logits

    def backward(self, loss: Tensor) -> None:
        """Reduces gradients as the ZeRO stage does: DeepSpeed counts the micro-batches."""
        self._engine.backward(loss)  # divides by the micro-batches of a step, and scales
        if not self._last:
            self._engine.step()  # counts the micro-batch; the update comes with the last

    def step(self) -> None:
        """Update, unless a gradient overflowed float16."""
        self._engine.step()
        if isinstance(self._scaling, LossScale):
            self._scaling.update()

    def figures(self) -> dict[str, float]:
        """None."""
        return {}

    def synchronise(self) -> None:
        """Nothing to do: every rank takes the same steps."""

    def weights(self) -> dict[str, Tensor]:
        """Whole tensors, in the usual layout; gathered at stage 3."""
        gathered = self._partition.parameters() if isinstance(self._partition, PartitionedParameters) else {}
        return {name: self._flat.seen(name, v) for name, v in {**self._network.state_dict(), **gathered}.items()}

    def whole_network(self) -> nn.Module:
        """A network whose memory is the engine's own; at stage 3 a new one each time."""
        if self._whole is not None:
            return self._whole
        whole = copy.deepcopy(self._empty)
        whole.load_state_dict(self.weights(), assign=True)
        if not isinstance(self._partition, PartitionedParameters):
            self._whole = whole  # its memory is the network's own
        return whole

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Load whole tensors, into the partitions too."""
        kept = {name: self._flat.kept(name, value) for name, value in weights.items()}
        if self._partition is None:
            self._network.load_state_dict(kept)
        else:
            self._partition.load_weights(kept)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Whole tensors, as DDP saves them, and the loss scale."""
        partition = self._partition
        tensors = self._optimizer_tensors() if partition is None else partition.optimizer_tensors()
        scaler = self._scaling.state_dict() if self._scaling is not None else {}
        tensors = {key: self._flat.seen(key.rpartition("/")[0], value) for key, value in tensors.items()}
        return tensors, {"scaler": scaler, **optimizers.group_values(self.optimizer)}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Load what any engine saved; what this optimizer does not know is left out."""
        tensors = rank_state.take(tensors, self._world, self._kinds)
        known = {}
        for key, value in tensors.items():
            name, _, kind = key.rpartition("/")
            if kind in self._kinds:
                known[key] = self._flat.kept(name, value)
        if self._partition is None:
            self._load_optimizer_tensors(known)
        else:
            self._partition.load_optimizer_tensors(known)
        optimizers.load_group_values(self.optimizer, values)
        if self._scaling is not None and values.get("scaler"):  # empty where another precision saved it
            self._scaling.load_state_dict(values["scaler"])

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}/{kind}": self.optimizer.state[parameter][kind]
            for name, parameter in self._network.named_parameters()
            for kind in self._kinds
            if kind in self.optimizer.state.get(parameter, {})
        }

    def _load_optimizer_tensors(self, tensors: dict[str, Tensor]) -> None:
        parameters = dict(self._network.named_parameters())
        for key, value in tensors.items():
            name, _, kind = key.rpartition("/")
            if name not in parameters:
                continue
            parameter = parameters[name]
            counts_steps = value.ndim == 0
            own = torch.empty((), device=parameter.device) if counts_steps else torch.empty_like(parameter)
            self.optimizer.state[parameter][kind] = own.detach().copy_(value)


def _loss_scaling(engine: Any, partition: Partition | None) -> torch.amp.GradScaler | LossScale:
    scaler: torch.amp.GradScaler = engine.torch_autocast_z0_gradscaler
    return scaler if partition is None else LossScale(partition.zero)


def _initialize(
    network: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any], config: Config, world: World
) -> Any:
    """DeepSpeed's engine around the network, in the process group that there is, or in one of this process alone.

    Raises:
        UserError: DeepSpeed does not take what the user's file says.
    """
    os.environ.setdefault("DS_ACCELERATOR", world.device.type)
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    with contextlib.redirect_stdout(sys.stderr):
        import deepspeed

        for name in ("DeepSpeed", "torch.utils.cpp_extension"):  # the latter warns about missing CUDA
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)  # old names, which DeepSpeed calls
        # Otherwise it would build an operator for inference, which needs a C++ compiler and a writable home directory.
        deepspeed.ops.__compatible_ops__ = {}
        deepspeed.init_distributed()  # takes the group as it is
        try:
            deepspeed.DeepSpeedConfig(copy.deepcopy(settings))
        except Exception as error:  # every section of it raises its own
            if config.deepspeed.config is None:
                raise
            reason = " ".join(str(error).split())
            raise UserError(f"deepspeed.config: DeepSpeed refuses {config.deepspeed.config}: {reason}") from None
        network.to(memory_format=torch.contiguous_format)  # DeepSpeed takes no other
        engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=settings)
    return engine
