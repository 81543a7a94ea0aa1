"""The training loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vgg_ddp.config.optimizer import LossConfig
from vgg_ddp.optim import nvidia_apex

Criterion = Callable[[Tensor, Tensor], Tensor]


def build(config: LossConfig, device: torch.device) -> Criterion:
    """Cross entropy with label smoothing, averaged over the images.

    It takes logits [n, classes] and labels [n], or shares [n, classes] of mixed images, and gives a scalar.

    Raises:
        UserError: apex is asked for and cannot be had.
    """
    plain = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    if not nvidia_apex.chosen(config.implementation, "loss.implementation", device, nvidia_apex.has_xentropy()):
        return plain
    from apex.contrib.xentropy import SoftmaxCrossEntropyLoss

    def fused(logits: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point():  # apex has labels alone
            return plain(logits, labels)
        no_label = -100  # one that no image has: apex leaves it out, and unless told otherwise it leaves out class 0
        half = logits.dtype != torch.float32
        return SoftmaxCrossEntropyLoss.apply(logits, labels, config.label_smoothing, no_label, half).mean()

    return fused
