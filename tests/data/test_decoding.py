"""JPEG files are decoded by libjpeg-turbo directly where nothing is unusual about them, and to Pillow's bits."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.support.pictures import encode, noise, oriented, smooth
from vgg_ddp.data.decoding import decode, decode_image

SETTINGS = {
    f"{subsampling} quality {quality}{' progressive' * progressive}": {
        "subsampling": subsampling,
        "quality": quality,
        "progressive": progressive,
    }
    for subsampling in ("4:4:4", "4:2:2", "4:2:0")
    for quality in (30, 75, 95)
    for progressive in (False, True)
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_usual_file_has_pillow_s_bits_without_pillow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(32, 32), (1, 1), (7, 17), (33, 50), (250, 191)]
    pictures = [smooth(*shape, seed) for seed, shape in enumerate(shapes)] + [noise(24, 31, 3)]
    files = [encode(picture, **SETTINGS[name]) for picture in pictures]
    grey = encode(Image.fromarray(smooth(21, 30, 9)[..., 0]), quality=80)
    expected = [decode(file).pixels for file in [*files, grey]]
    monkeypatch.setattr(Image, "open", None)
    for file, pixels in zip([*files, grey], expected, strict=True):
        np.testing.assert_array_equal(decode_image(file), pixels)


def test_an_unusual_file_is_left_to_pillow() -> None:
    picture = smooth(40, 30, 1)
    turned = oriented(picture, 6)
    assert decode_image(turned).shape == (30, 40, 3)
    inks = encode(Image.fromarray(picture).convert("CMYK"))
    np.testing.assert_array_equal(decode_image(inks), decode(inks).pixels)
    whole = encode(noise(64, 64, 2), quality=95)
    with pytest.raises(OSError, match="truncated"):
        decode_image(whole[: len(whole) // 2])


def test_a_file_that_says_it_is_huge_is_not_decoded() -> None:
    """Its header alone: 65,500 x 65,500 pixels would be 13 GB."""
    data = bytearray(encode(smooth(16, 16, 1)))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = (65500).to_bytes(2, "big") * 2
    with pytest.raises((Image.DecompressionBombError, Image.DecompressionBombWarning)):
        decode_image(bytes(data))
