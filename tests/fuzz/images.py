"""Fuzzes images: their headers, and their pixels against readers that share no code with ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image

from service.core.images.decode import decode, decode_reduced, reduced
from service.core.images.header import Header, read_header
from service.errors import ImageTooLarge, InvalidImage, UnsupportedImageFormat
from tests.drawing import UInt8Array, encode, png_of, street
from tests.fuzz.target import MAX_BYTES, Target, with_checksums
from tests.tiffs import BLACK_IS_ZERO, Layout, tiff

MAX_PIXELS = 1 << 14
ERRORS = (InvalidImage, UnsupportedImageFormat, ImageTooLarge)
_OTHER_READERS: dict[str, Callable[[bytes], Any]] = {
    "PNG": imagecodecs.png_decode,
    "WEBP": imagecodecs.webp_decode,
}


def images() -> list[bytes]:
    """Draws one of every kind that is read, each of some hundred bytes."""
    rgb = street(12, 16)
    grey = np.ascontiguousarray(rgb[:, :, 0])
    exif = Image.Exif()
    exif[0x0112] = 6
    found = [
        encode(rgb, "PNG"),
        encode(grey, "PNG"),
        encode(Image.fromarray(rgb).convert("P"), "PNG"),
        encode(Image.fromarray(rgb).convert("RGBA"), "PNG"),
        encode(grey.astype(np.uint16) * 257, "PNG"),  # type: ignore[arg-type]
        png_of(rgb, interlaced=True),
        encode(rgb, "JPEG", quality=80),
        encode(rgb, "JPEG", progressive=True, exif=exif),
        encode(grey, "JPEG", subsampling=0),
        encode(Image.fromarray(rgb).convert("CMYK"), "JPEG"),
        encode(rgb, "BMP"),
        encode(grey, "BMP"),
        encode(rgb, "WEBP", quality=80),
        encode(rgb, "WEBP", lossless=True, exif=exif),
        encode(Image.fromarray(rgb).convert("RGBA"), "WEBP"),
    ]
    layouts = (
        Layout(),
        Layout(order=">", compression=5, predictor=2),
        Layout(compression=8, part="tiles", big=True),
        Layout(planar=2, compression=32773, orientation=6),
    )
    found += [tiff(rgb, layout) for layout in layouts]
    found.append(tiff(grey[:, :, None].astype(np.uint16) * 257, Layout(BLACK_IS_ZERO, 16)))
    return found


def _header(data: bytes) -> str:
    header = read_header(data, max_bytes=MAX_BYTES)
    assert header.height > 0 and header.width > 0
    assert header.decode_bytes >= 3 * header.pixels
    return "read"


def _decoded(data: bytes) -> str:
    data = with_checksums(data)
    header = read_header(data, max_bytes=MAX_BYTES)
    if header.pixels > MAX_PIXELS:
        raise ImageTooLarge("so large an image is not tried here")
    rgb = decode(data, header, max_pixels=MAX_PIXELS)
    assert rgb.dtype == np.uint8 and rgb.shape[2:] == (3,) and rgb.size == 3 * header.pixels
    _reduced(data, header, rgb)
    if header.plain:
        # Two ways lead to the pixels of a plain JPEG: libjpeg alone, and Pillow.
        by_pillow = decode(data, replace(header, plain=False), max_pixels=MAX_PIXELS)
        assert np.array_equal(rgb, by_pillow), "libjpeg and Pillow differ"
        return "as Pillow"
    other = _by_another(data, header)
    if other is None:
        return "read"
    assert np.array_equal(rgb, other), "the other reader sees other pixels"
    return "as another"


def _reduced(data: bytes, header: Header, rgb: UInt8Array) -> None:
    """Reads it smaller, too: of the size that belongs to it, and alike by libjpeg and Pillow."""
    reduction = 2 << len(data) % 3
    if min(rgb.shape[:2]) < reduction:
        return
    smaller, size = decode_reduced(data, header, reduction, max_pixels=MAX_PIXELS)
    assert size == rgb.shape[:2] and smaller.shape[:2] == reduced(*size, reduction)
    if header.plain:
        by_pillow = replace(header, plain=False)
        other = decode_reduced(data, by_pillow, reduction, max_pixels=MAX_PIXELS)[0]
        assert np.array_equal(smaller, other), "libjpeg and Pillow differ"


def _by_another(data: bytes, header: Header) -> UInt8Array | None:
    """Reads 8-bit images without a turn; None where the other reader will not."""
    if header.format not in _OTHER_READERS or b"exif" in data.lower():
        return None
    try:
        found = np.asarray(_OTHER_READERS[header.format](data))
    except Exception:  # it has no set of errors
        return None
    if found.dtype != np.uint8:
        return None
    if found.ndim == 3 and found.shape[2] in (3, 4):
        return found[:, :, :3]
    if found.ndim == 2 or found.shape[2] == 2:
        grey = found.reshape(*found.shape[:2], -1)[:, :, :1]
        return np.repeat(grey, 3, axis=2)
    return None


IMAGES = (
    Target("image header", images, _header, ERRORS, frozenset({"read", "InvalidImage"})),
    Target(
        "image",
        images,
        _decoded,
        ERRORS,
        frozenset({"read", "as Pillow", "as another", "InvalidImage"}),
    ),
)
