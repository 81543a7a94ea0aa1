"""The NVIDIA DALI loader: decoding and augmentation in DALI's operators, on the GPU where there is one.

The order and the augmentation parameters come from Python by `external_source`; DALI prefetches ahead of the step on its
own threads. Batches reach torch without a copy (DLPack).
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from vgg_ddp.config.schema import DataConfig
from vgg_ddp.data import augment
from vgg_ddp.data.dataset import EncodedSplit, Split
from vgg_ddp.data.order import Slice
from vgg_ddp.loaders import Batch, Transform

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # DALI warns of a missing GPU driver at import; it runs on the CPU all the same
    from nvidia.dali import fn, pipeline_def, types


class DaliLoader:
    """See `vgg_ddp.loaders.Loader`."""

    def __init__(
        self, split: Split, transform: Transform, config: DataConfig, device: torch.device, batch: int
    ) -> None:
        self._split, self._transform, self._device = split, transform, device
        self._parts: Iterator[Slice] = iter(())
        self._fetched: deque[Slice] = deque()  # handed to DALI, not yet come back as a batch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._pipeline = _pipeline(
                self._fetch,
                split,
                transform,
                device.type == "cuda",
                batch_size=batch,
                num_threads=config.decode_threads,
                device_id=device.index if device.type == "cuda" else None,
                prefetch_queue_depth=config.prefetch,
                exec_dynamic=True,  # each output owns its memory: a batch stays whole after the next one is made
            )
            self._pipeline.build()

    def stream(self, parts: Iterable[Slice]) -> Iterator[Batch]:
        self._parts = iter(parts)
        while True:
            try:
                (images,) = self._pipeline.run()
            except StopIteration:
                self._pipeline.reset()
                return
            except RuntimeError:
                for sample in (sample for part in self._fetched for sample in part.samples):
                    self._split.decode(int(sample))  # raises a UserError that names the bad one
                raise
            samples = self._fetched.popleft().samples
            yield Batch(
                from_dlpack(images.as_tensor()),
                torch.from_numpy(self._split.labels[samples]).to(self._device, non_blocking=True),
                samples,
            )

    def _fetch(self) -> tuple[Any, ...]:
        """The inputs of the next batch, in the order in which `_pipeline` declares them."""
        part = next(self._parts)
        self._fetched.append(part)
        parameters = self._transform.draw(part)
        shapes = augment.resized_shapes(self._split.shapes(part.samples), self._transform.resize)
        offsets = augment.crop_offsets(parameters, shapes, self._transform.size, self._transform.padding)
        return (
            self._pixels_or_bytes(part.samples),
            shapes.astype(np.float32),
            offsets.astype(np.int32),
            parameters.flip.astype(np.int32),
            parameters.angle.astype(np.float32),
        )

    def _pixels_or_bytes(self, samples: NDArray[np.int64]) -> Any:
        if isinstance(self._split, EncodedSplit):
            return [self._split.encoded(int(sample)) for sample in samples]
        return self._split.images[samples]


@pipeline_def  # type: ignore[untyped-decorator]
def _pipeline(fetch: Any, split: Split, transform: Transform, on_gpu: bool) -> Any:
    encoded = isinstance(split, EncodedSplit)
    data, shape, offset, flip, angle = fn.external_source(
        source=fetch,
        num_outputs=5,
        batch=True,
        dtype=[types.UINT8, types.FLOAT, types.INT32, types.INT32, types.FLOAT],
        ndim=[1 if encoded else 3, 1, 1, 0, 0],
    )
    if encoded:
        images = fn.decoders.image(data, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
    else:
        images = data.gpu() if on_gpu else data
    if transform.resize is not None:
        images = fn.resize(images, size=shape, interp_type=types.INTERP_LINEAR, antialias=True)
    if transform.padding:
        images = _reflect_pad(images, transform.padding)
    images = fn.slice(images, offset, [transform.size, transform.size], axes=[0, 1])
    if transform.flips:
        images = fn.flip(images, horizontal=flip)
    if transform.rotates:
        images = fn.rotate(images, angle=angle, keep_size=True, fill_value=0, interp_type=types.INTERP_LINEAR)
    return images


def _reflect_pad(images: Any, padding: int) -> Any:
    """Pad height and width by mirroring without the edge. DALI pads with constants only; so: mirror, slice, concatenate."""
    mirrored = fn.flip(images, horizontal=1, vertical=0)
    images = fn.cat(mirrored[:, -1 - padding : -1], images, mirrored[:, 1 : 1 + padding], axis=1)
    mirrored = fn.flip(images, horizontal=0, vertical=1)
    return fn.cat(mirrored[-1 - padding : -1], images, mirrored[1 : 1 + padding], axis=0)
