"""What ZeRO partitions over the ranks (Rajbhandari et al., SC 2020, section 5), read and written as whole tensors by name.

`deepspeed.utils` reaches most of it; the rest are attributes of DeepSpeed 0.19's optimizers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vgg_ddp.distributed.world import World


class Partition:
    """ZeRO 1 and 2: a rank updates its partition of each parameter group, a flat slice of the group's parameters end to end.

    Every method is for all ranks together.
    """

    def __init__(self, zero: Any, optimizer: torch.optim.Optimizer, network: nn.Module, world: World) -> None:
        self.zero = zero
        self._optimizer, self._network, self._world = optimizer, network, world
        self._names = {id(parameter): name for name, parameter in network.named_parameters()}

    def _groups(self) -> Iterator[tuple[Tensor, list[nn.Parameter]]]:
        """This rank's partition of each parameter group, flat, and the group's parameters."""
        return zip(self.zero.single_partition_of_fp32_groups, self.zero.bit16_groups)

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Load a state dict of whole tensors."""
        self._network.load_state_dict(weights)
        self.zero.refresh_fp32_params()  # the partition is a copy

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimizer's state as `parameter/kind`, whole."""
        from deepspeed.utils import safe_get_full_optimizer_state

        for partition, parameters in self._groups():
            self._link(
                partition, parameters
            )  # the first step makes the state, and DeepSpeed links the first group's alone
        return {
            f"{self._names[id(parameter)]}/{kind}": (
                safe_get_full_optimizer_state(parameter, kind) if value.shape == partition.shape else value.clone()
            )
            for partition, parameters in self._groups()
            for kind, value in self._optimizer.state.get(partition, {}).items()
            for parameter in parameters
            if isinstance(value, Tensor)
        }

    def load_optimizer_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Load what `optimizer_tensors` gave."""
        for partition, parameters in self._groups():
            state: dict[str, Tensor] = {}
            for key, value in tensors.items():  # the whole group has one count of steps
                name, _, kind = key.rpartition("/")
                if any(self._names[id(parameter)] == name for parameter in parameters):
                    state[kind] = torch.zeros_like(partition) if value.ndim else value.to(partition.device, copy=True)
            if not state:
                continue
            self._optimizer.state[partition] = state
            self._link(partition, parameters)
            for parameter in parameters:
                for kind in state:
                    if state[kind].ndim:
                        value = tensors[f"{self._names[id(parameter)]}/{kind}"]
                        self._set_state(parameter, kind, value.to(partition.device))

    def _link(self, partition: Tensor, parameters: list[nn.Parameter]) -> None:
        """Tell each parameter its place in the optimizer's state of its group's partition."""
        from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state

        lazy_init_hp_params_optimizer_state(parameters, partition, self._optimizer.state)

    def _set_state(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(parameter, value, kind)


class PartitionedParameters(Partition):
    """ZeRO 3: each parameter too is partitioned, in equal slices of which the last may be padded."""

    def _groups(self) -> Iterator[tuple[Tensor, list[nn.Parameter]]]:
        return zip(self.zero.fp32_partitioned_groups_flat, self.zero.fp16_groups)

    def parameters(self) -> dict[str, Tensor]:
        """Every parameter, whole, in fp32."""
        from deepspeed.utils import safe_get_full_fp32_param

        return {name: safe_get_full_fp32_param(parameter) for name, parameter in self._network.named_parameters()}

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Load a state dict of whole tensors."""
        from deepspeed.utils import safe_set_local_fp32_param

        self.zero.parameter_offload.partition_all_parameters()  # small ones are kept whole: these would go stale
        for name, parameter in self._network.named_parameters():
            own = self._slice(parameter, weights[name])
            safe_set_local_fp32_param(parameter, own)  # what the optimizer steps
            _held(parameter).copy_(own)  # what the forward pass gathers: a copy of it in fp32
        for name, buffer in self._network.named_buffers():
            buffer.copy_(weights[name])

    def _link(self, partition: Tensor, parameters: list[nn.Parameter]) -> None:
        """Nothing to do: DeepSpeed has linked them."""

    def _set_state(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_local_optimizer_state

        safe_set_local_optimizer_state(parameter, self._slice(parameter, value), kind)

    def _slice(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """This rank's slice of a parameter's whole tensor, flat."""
        size = _held(parameter).numel()
        padded = nn.functional.pad(value.flatten(), (0, size * self._world.size - value.numel()))
        return padded[size * self._world.rank :][:size].to(self._world.device)


def _held(parameter: Any) -> Tensor:
    """This rank's slice of a parameter that ZeRO 3 partitioned, flat."""
    return parameter.ds_tensor


class LossScale:
    """The loss scale of ZeRO, by the rule of torch.amp.GradScaler, and saved under its names."""

    def __init__(self, zero: Any) -> None:
        # DeepSpeed 0.19 puts a GradScaler here. It is not told of a step that is skipped, it counts each group of
        # parameters as a step, and the clipping of gradients ignores its scale.
        zero.torch_autocast_gradscaler = None
        self._zero = zero
        self.load_state_dict(torch.amp.GradScaler("cpu").state_dict())

    def update(self) -> None:
        """Halve the scale after a step that was skipped for gradients that are not finite; double it after many good steps."""
        values = self._values
        values["_growth_tracker"] = 0 if self._zero.overflow else values["_growth_tracker"] + 1
        if self._zero.overflow:
            values["scale"] *= values["backoff_factor"]
        elif values["_growth_tracker"] == values["growth_interval"]:
            values |= {"scale": values["scale"] * values["growth_factor"], "_growth_tracker": 0}
        self._zero.override_loss_scale(values["scale"])

    def state_dict(self) -> dict[str, Any]:
        """As GradScaler's."""
        return dict(self._values)

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """As GradScaler's."""
        self._values = dict(values)
        self._zero.override_loss_scale(values["scale"])
