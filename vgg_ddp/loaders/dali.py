"""The NVIDIA DALI loader: decoding and scaling in DALI's operators, on the GPU where there is one.

Bytes and boxes come from Python by `external_source`; DALI makes batches ahead of the step on its own threads, and hands them
to torch without a copy (DLPack). Reflecting and turning are done for the whole batch afterwards: DALI has no reflect padding,
and emulating it with DALI's operators took as long as decoding a small JPEG.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from vgg_ddp.augment.geometry import Geometry, Placement
from vgg_ddp.augment.pixels import finish
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data.order import Slice
from vgg_ddp.data.splits import EncodedSplit, Split
from vgg_ddp.errors import UserError
from vgg_ddp.loaders import Batch, Loader

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # DALI warns of a missing GPU driver at import; it runs on the CPU all the same
    from nvidia.dali import fn, pipeline_def, types


class DaliLoader(Loader):
    """See `vgg_ddp.loaders.Loader`."""

    def __init__(self, split: Split, geometry: Geometry, config: DataConfig, device: torch.device, batch: int) -> None:
        assert config.decode_threads != "auto", "the caller counts the cores"
        self._split, self._geometry, self._device = split, geometry, device
        self._slices: Iterator[Slice] = iter(())
        self._fetched: deque[tuple[Slice, Placement]] = deque()  # handed to DALI, not yet come back as a batch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._pipeline = _pipeline(
                self._fetch,
                split,
                geometry,
                device.type == "cuda",
                batch_size=batch,
                num_threads=config.decode_threads,
                device_id=device.index if device.type == "cuda" else None,
                prefetch_queue_depth=config.prefetch,
                exec_dynamic=True,  # each output owns its memory: a batch stays whole after the next one is made
            )
            self._pipeline.build()

    def stream(self, slices: Iterable[Slice]) -> Iterator[Batch]:
        """See `vgg_ddp.loaders.Loader.stream`."""
        self._slices = iter(slices)
        while True:
            try:
                (images,) = self._pipeline.run(_stream(self._device))
            except StopIteration:
                self._pipeline.reset()
                return
            except RuntimeError as error:
                raise _undecodable(
                    self._split, [s for piece, _ in self._fetched for s in piece.samples], error
                ) from None
            piece, placement = self._fetched.popleft()
            if placement.rows is None:
                placement = replace(placement, flip=None)  # the pipeline did it
            yield Batch(
                finish(from_dlpack(images.as_tensor()), placement),
                torch.from_numpy(self._split.labels[piece.samples]).to(self._device, non_blocking=True),
                piece,
            )

    def _fetch(self) -> tuple[Any, ...]:
        """The inputs of the next batch, in the order in which `_pipeline` declares them."""
        piece = next(self._slices)
        shapes = self._split.shapes(piece.samples)
        placement = self._geometry.place(piece, shapes)
        self._fetched.append((piece, placement))
        box = placement.box
        if isinstance(self._split, EncodedSplit):
            data: Any = self._split.encoded_batch(piece.samples)
        else:
            data = self._split.pixels(piece.samples)
        # A window of whole pixels around each box, with what the filter reaches past it; only this much is decoded.
        margin = np.ceil(np.maximum(box[:, 2:] - box[:, :2], self._geometry.size) / self._geometry.size) + 1
        margin = margin if self._geometry.resamples else np.zeros_like(margin)
        low = np.maximum(np.floor(box[:, :2]) - margin, 0)
        high = np.minimum(np.ceil(box[:, 2:]) + margin, shapes)
        begin, end = box[:, :2] - low, box[:, 2:] - low
        return (
            data,
            low.astype(np.int32),
            (high - low).astype(np.int32),
            begin.astype(np.float32),
            end.astype(np.float32),
            np.zeros(len(box), dtype=np.int32) if placement.flip is None else placement.flip.astype(np.int32),
        )


def decode(
    split: EncodedSplit, samples: NDArray[np.int64], device: torch.device, threads: int, batch: int = 512
) -> Iterator[tuple[int, Tensor]]:
    """Decode images of one size, each once: the place of the first in `samples`, and uint8 [n, height, width, 3].

    Raises:
        UserError: naming a sample that cannot be decoded.
    """
    starts = iter(range(0, len(samples), batch))

    def fetch() -> Any:
        start = next(starts)
        return split.encoded_batch(samples[start : start + batch])

    on_gpu = device.type == "cuda"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = _decoding(
            fetch,
            "mixed" if on_gpu else "cpu",
            batch_size=batch,
            num_threads=threads,
            device_id=device.index if on_gpu else None,
            prefetch_queue_depth=2,
            exec_dynamic=True,
        )
        pipeline.build()
    for start in range(0, len(samples), batch):
        try:
            (images,) = pipeline.run(_stream(device))
        except RuntimeError as error:
            raise _undecodable(split, samples[start:], error) from None
        yield start, from_dlpack(images.as_tensor())


def _stream(device: torch.device) -> Any:
    """Torch's stream, on which DALI's outputs are then ready without the host's waiting; None for the CPU."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


def _undecodable(split: Split, samples: Sequence[int] | NDArray[np.int64], error: RuntimeError) -> Exception:
    """What to raise where DALI failed on one of `samples`: what Pillow says of it, or else that DALI alone cannot read it."""
    for sample in samples:
        try:
            split.decode(int(sample))
        except UserError as named:
            return named
    if isinstance(split, EncodedSplit) and "decod" in str(error):
        some = f"{split.key(int(samples[0]))} or one of the {len(samples) - 1} after it"
        return UserError(f"loader=dali cannot decode {some}; prepare the data set anew, or set loader=torch")
    return error


@pipeline_def  # type: ignore[untyped-decorator]
def _decoding(fetch: Any, decoder: str) -> Any:
    data = fn.external_source(source=fetch, batch=True, dtype=types.UINT8, ndim=1)
    # Fancy: a GPU interpolates subsampled chroma (4:2:0) as libjpeg-turbo does on a CPU.
    return fn.decoders.image(data, device=decoder, output_type=types.RGB, jpeg_fancy_upsampling=True)


@pipeline_def  # type: ignore[untyped-decorator]
def _pipeline(fetch: Any, split: Split, geometry: Geometry, on_gpu: bool) -> Any:
    encoded = isinstance(split, EncodedSplit)
    data, anchor, shape, begin, end, mirrored = fn.external_source(
        source=fetch,
        num_outputs=6,
        batch=True,
        dtype=[types.UINT8, types.INT32, types.INT32, types.FLOAT, types.FLOAT, types.INT32],
        ndim=[1 if encoded else 3, 1, 1, 1, 1, 0],
        layout=["" if encoded else "HWC", "", "", "", "", ""],
    )
    whole = split.uniform_shape == (geometry.size, geometry.size) and not geometry.resamples
    device = "mixed" if on_gpu else "cpu"
    if encoded and whole:
        images = fn.decoders.image(data, device=device, output_type=types.RGB, jpeg_fancy_upsampling=True)
    elif encoded:
        images = fn.decoders.image_slice(
            data, anchor, shape, axes=[0, 1], device=device, output_type=types.RGB, jpeg_fancy_upsampling=True
        )
    else:
        images = data.gpu() if on_gpu else data
        images = images if whole else fn.slice(images, anchor, shape, axes=[0, 1])
    if geometry.resamples:
        images = fn.resize(
            images,
            size=[geometry.size, geometry.size],
            roi_start=begin,
            roi_end=end,
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
    return fn.flip(images, horizontal=mirrored) if geometry.flip and not geometry.padding else images
