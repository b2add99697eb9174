"""Test images, drawn here: nothing is fetched."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

UInt8Array = npt.NDArray[np.uint8]


def street(height: int = 24, width: int = 32, *, seed: int = 0) -> UInt8Array:
    """uint8 RGB [H,W,3]: blue sky over a green strip and a red road, with noise.

    No two rows and no two columns are alike, so that a mirrored or transposed answer shows.
    """
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 60, (height, width, 3), np.uint8)
    thirds = np.linspace(0, 3, height, endpoint=False).astype(int)
    rgb[np.arange(height), :, 2 - thirds] += 120
    rgb[:, : width // 4, 1] |= 0x80  # a green hedge on the left
    return rgb


def encode(pixels: UInt8Array | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The file's bytes; `kind` is Pillow's name of the format."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(image: UInt8Array) -> bytes:
    return encode(image, "PNG")


def jpeg(image: UInt8Array) -> bytes:
    return encode(image, "JPEG", quality=95)


def animated_gif(frames: int = 3) -> bytes:
    images = [Image.fromarray(street(seed=n)) for n in range(frames)]
    return encode(images[0], "GIF", save_all=True, append_images=images[1:])


def huge_png_header(height: int = 20_000, width: int = 20_000) -> bytes:
    """A true PNG header of that size with next to no data after it."""
    body = bytearray(png(np.zeros((1, 1, 3), np.uint8)))
    body[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    body[29:33] = zlib.crc32(body[12:29]).to_bytes(4, "big")
    return bytes(body)


Chunk = tuple[bytes, bytes]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_file(
    height: int, width: int, bits: int, color: int, *chunks: Chunk, interlaced: bool = False
) -> bytes:
    """A PNG from the specification, of kinds that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlaced)
    kept = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*one) for one in kept)


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))


def png_of(
    samples: Any,
    bits: int = 8,
    color: int = 2,
    before: Sequence[Chunk] = (),
    after: Sequence[Chunk] = (),
    interlaced: bool = False,
) -> bytes:
    """Samples [H,W,C]; before, after: other chunks around the pixels."""
    shifts = np.arange(bits - 1, -1, -1)
    rows = b""
    for x, y, dx, dy in (*ADAM7, (0, 1, 1, 2)) if interlaced else ((0, 0, 1, 1),):
        for row in samples[y::dy, x::dx]:
            packed = (row.reshape(-1, 1).astype(np.uint16) >> shifts & 1).astype(np.uint8)
            rows += b"\0" + np.packbits(packed.reshape(-1)).tobytes()
    chunks = [*before, (b"IDAT", zlib.compress(rows)), *after]
    height, width, _ = samples.shape
    return png_file(height, width, bits, color, *chunks, interlaced=interlaced)


def read_png(body: bytes) -> UInt8Array:
    """Pixel values as stored: [H,W] class ids for a palette PNG, [H,W,3] for RGB."""
    with Image.open(io.BytesIO(body)) as image:
        return np.array(image)
