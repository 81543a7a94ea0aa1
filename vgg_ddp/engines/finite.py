"""Steps that are not taken because their gradients are not finite (`loss.on_nonfinite=skip`)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vgg_ddp.distributed.world import SharedUserError
from vgg_ddp.errors import AFTER_DIVERGENCE

MOST_IN_A_ROW = 20  # steps: a training that has diverged takes none again


class EveryStep:
    """Every step is taken, as it is: a loss that is not finite ends the training at the next row of its log."""

    @property
    def skipped(self) -> int | None:
        """How many steps were not taken; None: nobody looks."""
        return None

    def begin(self) -> None:
        """Do nothing."""

    def may_be_taken(self) -> bool:
        """It may."""
        return True

    def state(self) -> dict[str, int]:
        """Nothing."""
        return {}

    def load_state(self, values: dict[str, int]) -> None:
        """Nothing."""


class FiniteSteps(EveryStep):
    """A step is taken where all gradients are finite.

    Gradients were averaged over the ranks, and what is not finite on one rank is so on all: all decide alike. Not even batch
    norm's statistics keep anything of a step that was not taken. To look, the host waits for the device in each step.

    Args:
        network: whose buffers a forward pass changes.
        parameters: what has gradients.
    """

    def __init__(self, network: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
        self._buffers, self._parameters = list(network.buffers()), list(parameters)
        self._before: list[Tensor] = []
        self._skipped, self._in_a_row = 0, 0

    @property
    def skipped(self) -> int:
        """See `EveryStep`."""
        return self._skipped

    def begin(self) -> None:
        """Before a forward pass: of the first one of a step the buffers are kept."""
        self._before = self._before or [buffer.clone() for buffer in self._buffers]

    def may_be_taken(self) -> bool:
        """Whether the step may be taken; if not, the buffers are as before it, and it is counted.

        Raises:
            SharedUserError: so many in a row may not that the training has diverged.
        """
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        finite = bool(nn.utils.get_total_norm(gradients).isfinite())
        if not finite:
            with torch.no_grad():
                for buffer, before in zip(self._buffers, self._before):
                    buffer.copy_(before)
            self._skipped += 1
        self._before, self._in_a_row = [], 0 if finite else self._in_a_row + 1
        if self._in_a_row == MOST_IN_A_ROW:
            raise SharedUserError(
                f"the gradients of {MOST_IN_A_ROW} steps in a row are not finite, and none was taken: {AFTER_DIVERGENCE}"
            )
        return finite

    def state(self) -> dict[str, int]:
        """How many were not taken."""
        return {"skipped": self._skipped}

    def load_state(self, values: dict[str, int]) -> None:
        """Go on counting from what `state` gave."""
        self._skipped = values.get("skipped", 0)
