"""Every random number of a run, as a pure function of (seed, epoch, purpose, position).

Raw words come from the Philox counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
2011): the key is (seed, epoch and purpose), the counter is the position in the epoch, so any slice of an epoch can be computed
without what comes before it, on any rank and after any restart. NumPy keeps the streams of its bit generators stable
between versions, which it does not promise for its distributions; so only raw words are used here.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray


def random_words(seed: int, epoch: int, purpose: str, start: int, stop: int) -> NDArray[np.uint64]:
    """Four random 64-bit words for each position in [start, stop) of an epoch, uint64 [stop - start, 4].

    Args:
        purpose: the name of an independent stream, e.g. "flip": adding an augmentation leaves the other streams unchanged.
    """
    key = np.array([seed, (epoch << 32) | zlib.crc32(purpose.encode())], dtype=np.uint64)
    generator = np.random.Philox(key=key, counter=[start, 0, 0, 0])
    return generator.random_raw(4 * (stop - start)).reshape(-1, 4)


def uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Random words as numbers in [0, 1), from their upper 53 bits; the shape stays."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, epoch: int, count: int, purpose: str = "order") -> NDArray[np.int64]:
    """A random order of `count` samples in an epoch, int64 [count]; for `purpose` see `random_words`."""
    words = random_words(seed, epoch, purpose, 0, -(-count // 4)).reshape(-1)[:count]
    return np.argsort(words, kind="stable")


def seeds(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """A seed in [0, 2**63) for each row of random words, int64 [n], for generators of other libraries."""
    return (words[:, 0] >> np.uint64(1)).astype(np.int64)


def torch_seed(seed: int, epoch: int, purpose: str) -> int:
    """A seed in [0, 2**63) for one of torch's own generators, for what torch draws itself (dropout, initial factors)."""
    return int(seeds(random_words(seed, epoch, purpose, 0, 1))[0])


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Seed torch for a step by the step's number and the rank, so that no random state need be saved."""
    import torch  # here: most callers of this module need no torch

    torch.manual_seed(torch_seed(seed, step, f"dropout {rank}"))
