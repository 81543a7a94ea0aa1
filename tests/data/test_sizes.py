"""At which size images are trained on where the configuration says auto."""

from __future__ import annotations

import numpy as np
import pytest

from vgg_ddp.config.schema import DataConfig
from vgg_ddp.data.sizes import settle


class Shapes:
    """A split of which only the heights and widths are known."""

    def __init__(self, *shapes: tuple[int, int]) -> None:
        self._shapes = np.array(shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shapes(self, samples: np.ndarray) -> np.ndarray:
        return self._shapes[samples]


CASES = {
    "images of the network's size": (DataConfig(), [(32, 32)], (32, None)),
    "a little larger: a crop shows nearly all": (DataConfig(), [(40, 47)], (32, None)),
    "much larger: seen whole": (DataConfig(), [(200, 300)], (32, 36)),
    "one much larger": (DataConfig(), [(32, 32), (200, 300)], (32, 36)),
    "smaller: enlarged": (DataConfig(), [(28, 28)], (32, 32)),
    "photos at their own size": (DataConfig(photo_size=64), [(200, 300), (180, 200)], (64, 73)),
    "photos a little larger than that": (DataConfig(photo_size=64), [(64, 80)], (64, None)),
    "few photos among small images": (DataConfig(photo_size=64), [(32, 32), (32, 32), (200, 300)], (32, 36)),
    "the paper's sizes": (DataConfig(image_size=224), [(500, 375)], (224, 256)),
    "asked for: a number": (DataConfig(resize=48), [(200, 300)], (32, 48)),
    "asked for: as they are": (DataConfig(resize=None), [(200, 300)], (32, None)),
}


@pytest.mark.parametrize("name", CASES)
def test_sizes_follow_the_images(name: str) -> None:
    config, shapes, expected = CASES[name]
    settled, choices = settle(config, Shapes(*shapes))  # type: ignore[arg-type]
    assert (settled.image_size, settled.resize) == expected
    assert settled.photo_size is None
    changed = (settled.image_size != config.image_size) + (config.resize == "auto" and settled.resize is not None)
    assert len(choices) == changed  # what was chosen is said
    assert settle(settled, Shapes(*shapes)) == (settled, [])  # type: ignore[arg-type]
