"""How images are stored: decoded pixels, or image files; the choice, and the encoding of what is to be encoded."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vgg_ddp.data.decoding import decode_image
from vgg_ddp.errors import UserError

Kind = Literal["original", "raw", "jpeg", "jpeg2000"]


@dataclass(frozen=True)
class Storage:
    """What `vgg-ddp prepare` writes.

    Attributes:
        kind: "original" keeps what the source has: the bytes of image files that are plain (`vgg_ddp.data.plain_files`), the
            rest as PNG; the pixels of an archive of pixels. "raw" stores decoded pixels of one size. "jpeg" keeps the bytes of
            plain JPEG files and encodes the rest, with loss. "jpeg2000" encodes all without loss, in the one lossless format
            that DALI decodes on a GPU.
        quality: of JPEG encoding, 1 to 100.
        chroma: subsampling of JPEG encoding.
    """

    kind: Kind = "original"
    quality: int = 95
    chroma: str = "4:4:4"

    def encode(self, pixels: NDArray[np.uint8]) -> tuple[bytes, str]:
        """An image as a file, and its suffix.

        Raises:
            UserError: the format has no such images; JPEG ends at 65,535 pixels a side.
        """
        file = io.BytesIO()
        image = Image.fromarray(pixels)
        try:
            if self.kind == "jpeg2000":
                image.save(file, "JPEG2000", irreversible=False)
                return file.getvalue(), "jp2"
            image.save(file, "JPEG", quality=self.quality, subsampling=self.chroma)
            return file.getvalue(), "jpg"
        except OSError as error:
            raise UserError(
                f"an image of {image.width} x {image.height} pixels cannot be stored by --storage {self.kind} ({error}); "
                "take it away, or choose another storage"
            ) from None


class Difference:
    """How far decoded pixels are from those that were encoded, in levels of 255, over all images. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.images = 0
        self._count = self._sum = self._squares = self._largest = 0

    def add(self, pixels: NDArray[np.uint8], data: bytes) -> None:
        """Add an image, uint8 height x width x 3, and the file that it was encoded into."""
        apart = np.abs(pixels.astype(np.int64) - decode_image(data))
        with self._lock:
            self.images += 1
            self._count += apart.size
            self._sum += int(apart.sum())
            self._squares += int((apart**2).sum())
            self._largest = max(self._largest, int(apart.max()))

    def describe(self) -> dict[str, Any]:
        """Mean and largest difference, and the peak signal-to-noise ratio in dB (null where nothing differs)."""
        mean_square = self._squares / max(self._count, 1)
        return {
            "images": self.images,
            "mean_difference": self._sum / max(self._count, 1),
            "largest_difference": self._largest,
            "psnr": float(10 * np.log10(255**2 / mean_square)) if mean_square else None,
        }
