"""The PFLOP of a training: forward and backward of the images trained on, and Muon's updates, as torch counts them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vgg_ddp.config import Config
from vgg_ddp.optim import optimizers
from vgg_ddp.training.parts import empty_network


def pflop_of_steps(config: Config, classes: int, steps_per_epoch: int, ranks: int = 1) -> Callable[[int], float]:
    """The PFLOP of a training by its steps so far; those of each size of images, and of an update, are counted once."""
    of_image = cache(partial(flop_of_image_in_step, config, classes))
    of_update, sizes = ranks * flop_of_update(config, classes), config.data.train_sizes

    def of_steps(step: int) -> float:
        flops = step * of_update
        for epoch, first in enumerate(range(0, step, steps_per_epoch)):
            size = sizes[epoch] if epoch < len(sizes) else config.data.image_size
            flops += min(steps_per_epoch, step - first) * config.batch * of_image(size)
        return flops / 1e15

    return of_steps


def flop_of_image_in_step(config: Config, classes: int, size: int) -> float:
    """Mean FLOP of an image of a batch in a step: forward and backward, twice with SAM.

    With `loss.hardest` below 1, only this share of the images, after a forward pass of all of them.
    """
    share, passes = config.loss.hardest, 2 if config.optimizer.sharpness_radius else 1
    flops = share * passes * flop_of_image(config, classes, size)
    if share < 1:
        flops += flop_of_image(config, classes, min(size, config.loss.hardest_size or size), backward=False)
    return flops


def flop_of_image(config: Config, classes: int, size: int, backward: bool = True) -> float:
    """FLOP of one image, forward and backward or forward alone: half of those counted for two, on the meta device."""
    network = empty_network(config, classes, torch.device("cuda"))  # "cuda" only selects torch's own convolutions
    return flop_of_network(network, size, backward)


def flop_of_network(network: nn.Module, size: int, backward: bool = True) -> float:
    """The same of a network on the meta device."""
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        logits = network(torch.empty(2, 3, size, size))
        if backward:
            logits.sum().backward()
    return counter.get_total_flops() / 2


def flop_of_update(config: Config, classes: int) -> float:
    """FLOP of an update's matrix products, as on a CPU; only Muon has any."""
    if config.optimizer.name != "muon":
        return 0.0
    network = empty_network(config, classes, torch.device("cuda"))
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    for parameter in trained.values():
        parameter.grad = torch.empty_like(parameter)
    with FlopCounterMode(display=False) as counter:
        optimizers.build(trained, config.optimizer).step()
    return counter.get_total_flops()
