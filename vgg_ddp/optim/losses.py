"""The training loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vgg_ddp.config.optimizer import LossConfig
from vgg_ddp.optim import nvidia_apex

Criterion = Callable[[Tensor, Tensor], Tensor]


def build(config: LossConfig, device: torch.device) -> Criterion:
    """Cross entropy with label smoothing (Szegedy et al., CVPR 2016, section 7) and the weights of the classes.

    The mean is over the images, not over their weights: so it is the same over micro-batches and ranks.

    It maps logits [n, classes] and targets to a scalar; targets are labels, int64 [n], or float [n, classes] of mixed images.

    Raises:
        UserError: apex is asked for and cannot be used here.
    """
    if isinstance(config.class_weights, list):
        weights = torch.tensor(config.class_weights, device=device)
        each = nn.CrossEntropyLoss(weights, label_smoothing=config.label_smoothing, reduction="none")
        return lambda logits, targets: each(logits.float(), targets).mean()
    plain = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    if not nvidia_apex.chosen(config.implementation, "loss.implementation", device, nvidia_apex.has_xentropy()):
        return plain
    from apex.contrib.xentropy import SoftmaxCrossEntropyLoss

    def fused(logits: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point():  # apex takes only labels
            return plain(logits, labels)
        no_label = -100  # no image has it; apex ignores targets of this label, by default those of class 0
        if logits.dtype == torch.bfloat16:  # apex's kernel takes float16 and float32 alone
            logits = logits.float()
        half = logits.dtype == torch.float16
        return SoftmaxCrossEntropyLoss.apply(logits, labels, config.label_smoothing, no_label, half).mean()

    return fused
