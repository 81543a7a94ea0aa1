"""The handwritten digits inside scikit-learn."""

from __future__ import annotations

import numpy as np

from vgg_ddp.data.sources.source import Pixels, PixelSource


def digits() -> PixelSource:
    """The 1,797 handwritten digits inside scikit-learn (Alpaydin & Kaynak, UCI 1998), enlarged from 8 to 32 pixels.

    The last fifth of each class, in the set's own order, is for testing: the last writers are not among the first.
    """
    from PIL import Image as PillowImage
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = (bunch.images * 255 / 16).round().astype(np.uint8)
    enlarged = (PillowImage.fromarray(image).resize((32, 32), PillowImage.Resampling.BICUBIC) for image in small)
    grey = np.stack([np.asarray(image) for image in enlarged])
    images, labels = np.repeat(grey[..., None], 3, axis=3), bunch.target.astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        test[members[round(0.8 * len(members)) :]] = True
    splits = {"train": Pixels(images[~test], labels[~test]), "test": Pixels(images[test], labels[test])}
    return PixelSource(
        "digits",
        [str(i) for i in range(10)],
        {},
        splits,
        {"kind": "built in", "package": "scikit-learn"},
        "digits",
    )
