"""Which parts of a picture an answer comes from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from vgg_ddp.model import VGG
from vgg_ddp.model.layers import GlobalMaxPool2d

WINDOW = 4  # a hidden square has this part of a picture's side, and is moved by half of it
SMALLEST_MAP = 4  # squares along a side of the last convolution's map that Grad-CAM is worth looking at for
Layer = Callable[[Tensor], Tensor]


@torch.no_grad()
def occlusion(scores: Callable[[Tensor], Tensor], image: Tensor, target: int, window: int, stride: int) -> Tensor:
    """How much the score of class `target` falls where a part of the image is hidden (Zeiler and Fergus 2014, section 4.2).

    A square of the mean colour is moved over the image; a pixel has the mean fall over the squares that hide it.

    Args:
        scores: normalised images [n, 3, side, side] to scores [n, classes].
        image: normalised, [3, side, side]; zero is the mean colour.
        window, stride: the square's side and its steps, pixels. The last step of a row or column ends at the edge.

    Returns: float [side, side].
    """
    side = image.shape[-1]
    starts = list(range(0, max(side - window, 0) + stride, stride))
    places = [(top, left) for top in starts for left in starts]
    hidden = image.repeat(len(places), 1, 1, 1)
    for one, (top, left) in zip(hidden, places):
        one[:, top : top + window, left : left + window] = 0.0
    found = scores(torch.cat([image[None], hidden]))[:, target].double().cpu()
    falls, times = torch.zeros(side, side, dtype=torch.float64), torch.zeros(side, side, dtype=torch.float64)
    for fall, (top, left) in zip((found[0] - found[1:]), places):
        falls[top : top + window, left : left + window] += fall
        times[top : top + window, left : left + window] += 1
    return (falls / times.clamp(min=1)).float()


def grad_cam(network: VGG, image: Tensor, target: int) -> Tensor | None:
    """Where the last convolution sees class `target` (Selvaraju et al. 2017, "Grad-CAM", section 3), float [height, width].

    The maps that enter the last pool, after ReLU where the network has it, weighted by the mean gradient of the class's logit;
    what speaks against it is zero. None where that map is smaller than `SMALLEST_MAP`.

    Args:
        network: in evaluation mode.
        image: normalised, [3, side, side].
    """
    first, rest = _around_last_pool(network.features)
    if isinstance(rest[1], nn.ReLU):  # it stands behind the pool, with which it commutes
        first, rest = [*first, rest[1]], [rest[0], *rest[2:]]
    with torch.no_grad():
        before = _through(first, image[None])
    if min(before.shape[2:]) < SMALLEST_MAP:
        return None
    with torch.enable_grad():
        maps = before.detach().requires_grad_()
        logit = network.classifier(_through(rest, maps.clone()).flatten(1))[0, target]
        (gradient,) = torch.autograd.grad(logit, maps)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return functional.relu((weights * before).sum(dim=1))[0].float().cpu()


def _around_last_pool(features: nn.Sequential) -> tuple[list[Layer], list[Layer]]:
    """The layers before the last pool, and those from it on; fused ones (`vgg_ddp.model.fusion`) taken apart."""
    layers: list[Layer] = []
    for layer in features:
        pool = getattr(layer, "pool", None)
        if isinstance(layer, nn.BatchNorm2d) and pool is not None:
            layers.append(partial(nn.BatchNorm2d.forward, layer))
            layers += [nn.MaxPool2d(pool), nn.ReLU()] if pool > 1 else [nn.ReLU()]
        else:
            layers.append(layer)
    last = max(number for number, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d | GlobalMaxPool2d))
    return layers[:last], layers[last:]


def _through(layers: list[Layer], values: Tensor) -> Tensor:
    for layer in layers:
        values = layer(values)
    return values
