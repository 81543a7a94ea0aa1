"""A map of images: the features before the network's last layer in two dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg_ddp.analysis.neighbours import VOTING, Features, nearest

COMPONENTS = 30  # that are kept of the features
PERPLEXITY = 30.0
FEWEST = 10  # images to make a map of


def layout(features: Features) -> NDArray[np.float32]:
    """Places [n, 2] between 0 and 1 in which images lie near to those that they are like; empty for too few images.

    t-SNE (van der Maaten and Hinton 2008) of the features' principal components, which it begins with. On one thread: sums
    in another order end in another map.
    """
    if len(features) < FEWEST:
        return np.empty((0, 2), np.float32)
    if not np.ptp(features, axis=0).any():  # all alike: there is nothing to lay out
        return np.full((len(features), 2), 0.5, np.float32)
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE  # slow to import
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):
        few = min(COMPONENTS, *features.shape)
        components = PCA(few, svd_solver="covariance_eigh").fit_transform(features.astype(np.float64))
        perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
        places = TSNE(2, perplexity=perplexity, init="pca", random_state=0, n_jobs=1).fit_transform(components)
    low, high = places.min(axis=0), places.max(axis=0)
    return ((places - low) / np.maximum(high - low, 1e-9)).astype(np.float32)


def describe(features: Features, places: NDArray[np.float32], label: NDArray[np.int64]) -> dict[str, Any]:
    """What can be read off the map: how faithful it is, and how many of an image's nearest are of its class.

    Returns: `images`; `kept`: the share of each image's ten nearest in the features that are among its ten nearest on the
    map, in the mean; `same_class`: the share of the ten nearest in the features that are of the image's class, in the mean.
    """
    from sklearn.neighbors import NearestNeighbors  # slow to import

    near = nearest(features, features, VOTING, themselves=True)
    on_map = NearestNeighbors(n_neighbors=near.shape[1]).fit(places).kneighbors(return_distance=False)
    both = (near[:, :, None] == on_map[:, None, :]).any(axis=2)
    return {
        "images": len(places),
        "nearest": near.shape[1],
        "kept": float(both.mean()),
        "same_class": float((label[near] == label[:, None]).mean()),
    }
