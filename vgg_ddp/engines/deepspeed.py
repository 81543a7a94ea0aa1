"""DeepSpeed: optimizer state, gradients and parameters split over the ranks (ZeRO; Rajbhandari et al., SC 2020, section 5)."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import sys
import warnings
from collections.abc import Iterator
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
from vgg_ddp.errors import UserError
from vgg_ddp.model import batch_norm
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
        if config.model.sync_batch_norm and world.size > 1:
            batch_norm.synchronise(network)
        self._network = network
        self._empty = copy.deepcopy(network).to("meta")
        self._whole: nn.Module | None = None
        # ZeRO 3 takes each parameter's memory away and gives it back: a view of it would hold it.
        self._flat = FlatWeights(network, wanted=config.channels_last and config.deepspeed.stage < 3)
        self._last = True
        rule = msgspec.structs.replace(config.optimizer, implementation="torch")
        self.optimizer = optimizers.build(network.parameters(), rule)
        if config.deepspeed.stage:
            self.optimizer.state.clear()  # each rank has that of its part
        self._engine = _initialize(network, self.optimizer, settings, config, world)
        self._partition: _Partition | None = None
        if config.deepspeed.stage:
            kind = _PartitionedParameters if config.deepspeed.stage == 3 else _Partition
            self._partition = kind(self._engine.optimizer, self.optimizer, network, world)
        self._scaling = _loss_scaling(self._engine, self._partition) if config.precision == "fp16" else None

    def forward(self, images: Tensor, labels: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        self._last = last
        logits = self._engine(images)
        with self._autocast:
            return self._criterion(logits, labels), logits

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)  # divides by the micro-batches of a step, and scales
        if not self._last:
            self._engine.step()  # counts the micro-batch; the update comes with the last

    def step(self) -> None:
        self._engine.step()
        if isinstance(self._scaling, _LossScale):
            self._scaling.update()

    def synchronise(self) -> None:
        """Nothing to do: every rank takes the same steps."""

    def weights(self) -> dict[str, Tensor]:
        parts = self._partition.parameters() if isinstance(self._partition, _PartitionedParameters) else {}
        return {name: self._flat.seen(name, v) for name, v in {**self._network.state_dict(), **parts}.items()}

    def whole_network(self) -> nn.Module:
        if self._whole is not None:
            return self._whole
        whole = copy.deepcopy(self._empty)
        whole.load_state_dict(self.weights(), assign=True)
        if not isinstance(self._partition, _PartitionedParameters):
            self._whole = whole  # its memory is the network's own
        return whole

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        kept = {name: self._flat.kept(name, value) for name, value in weights.items()}
        if self._partition is None:
            self._network.load_state_dict(kept)
        else:
            self._partition.load_weights(kept)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        parts = self._partition
        tensors = self._optimizer_tensors() if parts is None else parts.optimizer_tensors()
        scaler = self._scaling.state_dict() if self._scaling is not None else {}
        tensors = {key: self._flat.seen(key.rpartition("/")[0], value) for key, value in tensors.items()}
        return tensors, {"scaler": scaler, **optimizers.group_values(self.optimizer)}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        tensors = rank_state.take(tensors, self._world)
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
        if self._scaling is not None:
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
            parameter = parameters[name]
            counts_steps = value.ndim == 0
            own = torch.empty((), device=parameter.device) if counts_steps else torch.empty_like(parameter)
            self.optimizer.state[parameter][kind] = own.detach().copy_(value)


class _Partition:
    """What ZeRO 1 and 2 split: for each group of parameters, a rank updates one part of them all, laid end to end.

    Reads and writes it as whole tensors by parameter name. Every method is for all ranks together.
    """

    def __init__(self, zero: Any, optimizer: torch.optim.Optimizer, network: nn.Module, world: World) -> None:
        self.zero = zero
        self._optimizer, self._network, self._world = optimizer, network, world
        self._names = {id(parameter): name for name, parameter in network.named_parameters()}

    def _groups(self) -> Iterator[tuple[Tensor, list[nn.Parameter]]]:
        """This rank's part of each group's parameters, flat, and the parameters."""
        return zip(self.zero.single_partition_of_fp32_groups, self.zero.bit16_groups)

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self._network.load_state_dict(weights)
        self.zero.refresh_fp32_params()  # the part is a copy

    def optimizer_tensors(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        for part, parameters in self._groups():
            self._link(part, parameters)  # the first step makes the state, and DeepSpeed links the first group's alone
        return {
            f"{self._names[id(parameter)]}/{kind}": (
                safe_get_full_optimizer_state(parameter, kind) if value.shape == part.shape else value.clone()
            )
            for part, parameters in self._groups()
            for kind, value in self._optimizer.state.get(part, {}).items()
            for parameter in parameters
            if isinstance(value, Tensor)
        }

    def load_optimizer_tensors(self, tensors: dict[str, Tensor]) -> None:
        for part, parameters in self._groups():
            state: dict[str, Tensor] = {}
            for key, value in tensors.items():  # counts of steps are shared, the rest is laid end to end
                name, _, kind = key.rpartition("/")
                if any(self._names[id(parameter)] == name for parameter in parameters):
                    state[kind] = torch.zeros_like(part) if value.ndim else value.to(part.device, copy=True)
            if not state:
                continue
            self._optimizer.state[part] = state
            self._link(part, parameters)
            for parameter in parameters:
                for kind in state:
                    if state[kind].ndim:
                        value = tensors[f"{self._names[id(parameter)]}/{kind}"]
                        self._set_state(parameter, kind, value.to(part.device))

    def _link(self, part: Tensor, parameters: list[nn.Parameter]) -> None:
        """Tell each parameter its place in the optimizer's state of the part."""
        from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state

        lazy_init_hp_params_optimizer_state(parameters, part, self._optimizer.state)

    def _set_state(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(parameter, value, kind)


class _PartitionedParameters(_Partition):
    """What ZeRO 3 splits: each parameter too, in equal parts of which the last may be padded."""

    def _groups(self) -> Iterator[tuple[Tensor, list[nn.Parameter]]]:
        return zip(self.zero.fp32_partitioned_groups_flat, self.zero.fp16_groups)

    def parameters(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        return {name: safe_get_full_fp32_param(parameter) for name, parameter in self._network.named_parameters()}

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_local_fp32_param

        self.zero.parameter_offload.partition_all_parameters()  # small ones are kept whole: these would go stale
        for name, parameter in self._network.named_parameters():
            part = self._part(parameter, weights[name])
            safe_set_local_fp32_param(parameter, part)  # what the optimizer steps
            _held(parameter).copy_(part)  # what the forward pass gathers: a copy of it in fp32
        for name, buffer in self._network.named_buffers():
            buffer.copy_(weights[name])

    def _link(self, part: Tensor, parameters: list[nn.Parameter]) -> None:
        """Nothing to do: each parameter knows its place in the part."""

    def _set_state(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_local_optimizer_state

        safe_set_local_optimizer_state(parameter, self._part(parameter, value), kind)

    def _part(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """This rank's part of a parameter's whole tensor, flat."""
        size = _held(parameter).numel()
        padded = nn.functional.pad(value.flatten(), (0, size * self._world.size - value.numel()))
        return padded[size * self._world.rank :][:size].to(self._world.device)


def _held(parameter: Any) -> Tensor:
    """What this rank holds of a parameter that ZeRO 3 split, flat."""
    return parameter.ds_tensor


class _LossScale:
    """The loss scale of ZeRO, by the rule of torch.amp.GradScaler and saved in its words."""

    def __init__(self, zero: Any) -> None:
        # DeepSpeed 0.19 puts a GradScaler here, which is not told of a step that is skipped, counts each group of
        # parameters as a step, and is unknown to the clipping.
        zero.torch_autocast_gradscaler = None
        self._zero = zero
        self.load_state_dict(torch.amp.GradScaler("cpu").state_dict())

    def update(self) -> None:
        """Halve the scale after a step that was skipped, as its gradients were not finite; double it after many good ones."""
        values = self._values
        values["_growth_tracker"] = 0 if self._zero.overflow else values["_growth_tracker"] + 1
        if self._zero.overflow:
            values["scale"] *= values["backoff_factor"]
        elif values["_growth_tracker"] == values["growth_interval"]:
            values |= {"scale": values["scale"] * values["growth_factor"], "_growth_tracker": 0}
        self._zero.override_loss_scale(values["scale"])

    def state_dict(self) -> dict[str, Any]:
        return dict(self._values)

    def load_state_dict(self, values: dict[str, Any]) -> None:
        self._values = dict(values)
        self._zero.override_loss_scale(values["scale"])


def _loss_scaling(engine: Any, partition: _Partition | None) -> torch.amp.GradScaler | _LossScale:
    scaler: torch.amp.GradScaler = engine.torch_autocast_z0_gradscaler
    return scaler if partition is None else _LossScale(partition.zero)


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

        for name in ("DeepSpeed", "torch.utils.cpp_extension"):  # the latter misses CUDA where a CPU operator is built
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)  # old names, which DeepSpeed calls
        deepspeed.init_distributed()  # takes the group as it is
        try:
            deepspeed.DeepSpeedConfig(copy.deepcopy(settings))
        except Exception as error:  # each part of it has its own
            if config.deepspeed.config is None:
                raise
            reason = " ".join(str(error).split())
            raise UserError(f"deepspeed.config: DeepSpeed refuses {config.deepspeed.config}: {reason}") from None
        network.to(memory_format=torch.contiguous_format)  # DeepSpeed takes no other
        engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=settings)
    return engine
