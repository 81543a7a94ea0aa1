"""PowerSGD: gradients are sent as low-rank factors (Vogels, Karimireddy & Jaggi, NeurIPS 2019, algorithms 1 and 2).

torch's own hook is not used: it waits for one message in the callback of another, and with gloo these come in an order that
can differ between ranks; and it keeps its errors in the order of DDP's buckets, which changes with a restart. Here every
parameter has its error and its factor under its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from vgg_ddp.config import Config
from vgg_ddp.distributed.world import World
from vgg_ddp.engines import rank_state
from vgg_ddp.engines.compression import NoCompression
from vgg_ddp.randomness import torch_seed

ERROR, FACTOR = "powersgd_error", "powersgd_factor"


def as_matrix(tensor: Tensor) -> Tensor:
    """The tensor as a view [first dimension, the rest], the rest in the order of its memory.

    A bucket's gradients lie in the memory order of their parameters, but are views of that memory as if it were contiguous.
    """
    if tensor.ndim == 4 and not tensor.is_contiguous():
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.view(tensor.shape[0], -1)


def orthonormal(factors: Sequence[Tensor]) -> list[Tensor]:
    """For each factor [r, n], one with orthonormal rows that span the same space; equal shapes are computed as a batch.

    By QR decomposition, which a GPU computes for many small matrices as quickly as for one.
    """
    found: list[Tensor] = list(factors)
    shapes = {factor.shape for factor in factors}
    for shape in sorted(shapes):
        places = [place for place, factor in enumerate(factors) if factor.shape == shape]
        together = torch.linalg.qr(torch.stack([factors[place].t() for place in places])).Q
        for place, left in zip(places, together.mT):
            found[place] = left
    return found


@dataclass
class _LowRank:
    """A gradient that is sent as factors: `value` [n, m], with the error added, is nearly `left`^T [n, r] `right` [r, m].

    The factors lie as rows: with columns the same products take up to 25 times as long on a CPU.
    """

    gradient: Tensor
    value: Tensor
    left: Tensor
    right: Tensor


@dataclass
class _Sent:
    """A bucket in flight: the left factors of its large gradients, and the small gradients whole, in one message."""

    future: torch.futures.Future[Tensor]
    buffer: Tensor
    large: list[_LowRank]
    small: list[Tensor]
    message: Tensor
    work: Any


class PowerSgd(NoCompression):
    """A communication hook of DDP's: `reduce` for each bucket of a step, in the same order on every rank.

    The left factors are sent as soon as their bucket is complete; the right ones after the last bucket. So a step has two
    waits, however many layers, and no message is sent from another thread. What a step's factors miss is added to the next
    step's gradient (error feedback).
    """

    def __init__(self, config: Config, parameters: Mapping[str, Tensor], world: World) -> None:
        self._rank, self._warmup_steps = config.communication.powersgd_rank, config.communication.powersgd_warmup_steps
        self._seed, self._world, self._parameters = config.seed, world, parameters
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._steps = 0
        self._errors: dict[str, Tensor] = {}
        self._factors: dict[str, Tensor] = {}
        self._sent: list[_Sent] = []

    def attach(self, wrapped: DistributedDataParallel) -> None:
        """Register `reduce`."""
        wrapped.register_comm_hook(None, lambda state, bucket: self.reduce(bucket))

    def reduce(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """Send the gradients of a bucket (torch.distributed.GradBucket); the future of their mean over the ranks."""
        last = bucket.is_last()
        if self._steps < self._warmup_steps:
            self._steps += last
            buffer = bucket.buffer().div_(self._world.size)
            return dist.all_reduce(buffer, async_op=True).get_future().then(lambda done: done.value()[0])
        self._sent.append(sent := self._send(bucket))
        if last:
            self._steps += 1
            self._finish()
        return sent.future

    @torch.no_grad()
    def _send(self, bucket: Any) -> _Sent:
        large, small = [], []
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients()):
            if gradient.ndim > 1 and self._is_worth_it(as_matrix(gradient)):
                large.append(self._low_rank(self._names[id(parameter)], parameter, as_matrix(gradient)))
            else:
                small.append(gradient)
        message = torch.cat([*(low.left.flatten() for low in large), *(gradient.flatten() for gradient in small)])
        work = dist.all_reduce(message, async_op=True)
        buffer = bucket.buffer()
        devices = [buffer.device] if buffer.is_cuda else None
        return _Sent(torch.futures.Future(devices=devices), buffer, large, small, message, work)

    def _is_worth_it(self, matrix: Tensor) -> bool:
        """Whether the factors have less than half as many values as the matrix."""
        return 2 * self._rank * sum(matrix.shape) < matrix.numel()

    def _low_rank(self, name: str, parameter: Tensor, matrix: Tensor) -> _LowRank:
        error = self._errors.get(name)
        if error is None:
            error = self._errors[name] = torch.zeros_like(parameter, requires_grad=False)
        value = as_matrix(error).add_(matrix)
        if name not in self._factors:
            generator = torch.Generator().manual_seed(torch_seed(self._seed, 0, f"powersgd {name}"))
            self._factors[name] = torch.randn(self._rank, matrix.shape[1], generator=generator).to(matrix)
        right = self._factors[name]
        return _LowRank(matrix, value, right @ value.t(), right)

    @torch.no_grad()
    def _finish(self) -> None:
        """Receive the left factors, exchange the right ones, and put their products in place of the gradients."""
        waits = []
        for sent in self._sent:
            sent.work.wait()
            sizes = [low.left.numel() for low in sent.large]
            lefts = sent.message[: sum(sizes)].split(sizes)
            for low, left in zip(sent.large, lefts):
                low.left = left.view_as(low.left)
            for low, left in zip(sent.large, orthonormal([low.left for low in sent.large])):
                low.left = left
                torch.mm(low.left, low.value, out=low.right)
            rights = torch.cat([low.right.flatten() for low in sent.large]) if sent.large else sent.message[:0]
            waits.append((rights, dist.all_reduce(rights, async_op=True)))
            smalls = sent.message[sum(sizes) :].div_(self._world.size).split([s.numel() for s in sent.small])
            for gradient, mean in zip(sent.small, smalls):
                gradient.copy_(mean.view_as(gradient))
        for sent, (rights, work) in zip(self._sent, waits):
            work.wait()
            means = rights.div_(self._world.size).split([low.right.numel() for low in sent.large])
            for low, mean in zip(sent.large, means):
                low.right.copy_(mean.view_as(low.right))
                torch.mm(low.left.t(), low.right, out=low.gradient)
                low.value.sub_(low.gradient)  # the error
            sent.future.set_result(sent.buffer)
        self._sent = []

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Errors of every rank and factors, on rank 0; the steps so far. All ranks together."""
        errors = rank_state.gather({f"{name}/{ERROR}": error for name, error in self._errors.items()}, self._world)
        factors = {f"{name}/{FACTOR}": factor for name, factor in self._factors.items()}
        return errors | factors, {"powersgd": {"steps": self._steps}}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take this rank's errors, and the factors, unless they have another `powersgd_rank`: these start anew."""
        self._steps = values.get("powersgd", {}).get("steps", 0)
        for key, tensor in tensors.items():
            name, _, kind = key.rpartition("/")
            like = self._parameters.get(name)
            if kind == ERROR and like is not None:
                self._errors[name] = torch.empty_like(like, requires_grad=False).copy_(tensor)
            elif kind == FACTOR and like is not None and tensor.shape[0] == self._rank:
                self._factors[name] = tensor.to(like.device, copy=True)
