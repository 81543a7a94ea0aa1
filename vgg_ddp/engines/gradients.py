"""Gradients between the backward pass and the step: norm, clipping, logging, and skipping of steps that are not finite."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vgg_ddp.config import Config
from vgg_ddp.distributed.world import SharedUserError
from vgg_ddp.errors import AFTER_DIVERGENCE

MOST_IN_A_ROW = 20  # steps not taken in a row: a training that has diverged never takes one again


class Gradients:
    """What a configuration does with gradients before a step, which may be nothing.

    The gradients are averaged over the ranks by then, so all ranks see the same norm and decide alike whether to take
    the step. With `loss.on_nonfinite=skip` the host waits for the device in each step.

    Args:
        network: its buffers, which forward passes change, are restored where the step is not taken.
        parameters: those that have gradients.
        scaler: where it is enabled (fp16), it gets such steps too and skips them itself, to adapt the loss scale.
    """

    def __init__(
        self,
        config: Config,
        network: nn.Module,
        parameters: Iterable[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self._buffers, self._parameters = list(network.buffers()), list(parameters)
        self._optimizer, self._scaler, self._most = optimizer, scaler, config.optimizer.clip_norm
        self._logs = config.log.gradient_norm
        self._skips = config.loss.on_nonfinite == "skip"
        self._before: list[Tensor] = []
        self._norm = torch.zeros((), device=self._parameters[0].device)
        self._skipped = self._in_a_row = 0

    def begin(self) -> None:
        """Call this before the forward pass of every micro-batch; the first of a step saves the buffers."""
        if self._skips and not self._before:
            self._before = [buffer.clone() for buffer in self._buffers]

    def may_be_taken(self) -> bool:
        """Clip the gradients of a whole step; whether to take it. Where they are not finite, restore the buffers.

        Raises:
            SharedUserError: too many steps in a row could not be taken, so the training has diverged.
        """
        if self._most is not None or self._logs or self._skips:
            self._scaler.unscale_(self._optimizer)
            gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            self._norm.copy_(nn.utils.get_total_norm(gradients))  # in place: a graph of another size writes there too
            if self._most is not None:
                nn.utils.clip_grads_with_norm_(self._parameters, self._most, self._norm)
        return not self._skips or self._is_finite() or self._scaler.is_enabled()

    @torch.no_grad()
    def _is_finite(self) -> bool:
        finite = bool(self._norm.isfinite())
        if not finite:
            for buffer, before in zip(self._buffers, self._before):
                buffer.copy_(before)
            self._skipped += 1
        self._before, self._in_a_row = [], 0 if finite else self._in_a_row + 1
        if self._in_a_row == MOST_IN_A_ROW:
            raise SharedUserError(
                f"the gradients of {MOST_IN_A_ROW} steps in a row are not finite, and none was taken: {AFTER_DIVERGENCE}"
            )
        return finite

    def figures(self) -> dict[str, float]:
        """For the log: the norm of the last step's gradients before they were clipped, and how many steps were not taken."""
        norm = {"gradient_norm": float(self._norm)} if self._logs else {}
        return norm | ({"skipped": self._skipped} if self._skips else {})

    def state(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"skipped": self._skipped} if self._skips else {}

    def load_state(self, values: dict[str, int]) -> None:
        """Go on counting from what `state` gave."""
        self._skipped = values.get("skipped", 0)
