"""Encodes what callers have as files' bytes, and decodes what the server sends into arrays."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from fcn_client.errors import DecodeError, InvalidInput
from fcn_client.types import ImageLike, UInt8Array

VOID = 255
_PNG_LEVEL = 1  # higher ones cost tens of milliseconds and save a few percent
_MODES_16_BIT = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})


def file_bytes(image: ImageLike) -> bytes:
    """Returns an encoded file for the server; arrays and Pillow images become PNG, without loss.

    Raises: InvalidInput.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        body = bytes(image)
        if not body:
            raise InvalidInput("the image has no bytes: give a whole file's")
        return body
    if isinstance(image, str | Path):
        try:
            body = Path(image).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a path with a null in it
            why = getattr(error, "strerror", None) or error
            raise InvalidInput(f"{image} cannot be read: {why}") from error
        if not body:
            raise InvalidInput(f"{image} is empty")
        return body
    if isinstance(image, Image.Image):
        try:
            return encode(upright_rgb(image))
        except Exception as error:  # on damaged bytes Pillow's plugins raise anything
            raise InvalidInput(f"the Pillow image cannot be read: {error}") from error
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InvalidInput(
                f"the array is {image.dtype} {list(image.shape)}: give uint8 RGB [height, width, 3]"
            )
        return encode(image)
    raise InvalidInput(
        f"a {type(image).__name__} is no image: give a path, a file's bytes, a uint8 RGB array "
        "or a Pillow image"
    )


def encode(rgb: UInt8Array) -> bytes:
    """Encodes as PNG: uint8 RGB [H,W,3]."""
    return _png(Image.fromarray(np.ascontiguousarray(rgb)))


def read_rgb(body: bytes) -> UInt8Array:
    """Decodes a file to uint8 RGB [H,W,3], upright, as the server sees it. Raises: InvalidInput."""
    try:
        with Image.open(io.BytesIO(body)) as image:
            while not is_frame(image):
                image.seek(image.tell() + 1)
            return upright_rgb(image)
    except Exception as error:  # on damaged bytes Pillow's plugins raise anything
        raise InvalidInput("the file cannot be read as an image") from error


def is_frame(page: Image.Image) -> bool:
    """Tells a page from a copy or a mask of another one of its TIFF, as the server does.

    Source: TIFF 6.0, NewSubfileType and the SubfileType before it; PhotometricInterpretation 4.
    """
    tags = getattr(page, "tag_v2", {})
    kind = tags.get(254, 1 if tags.get(255) == 2 else 0)
    alone = page.tell() == 0 and getattr(page, "n_frames", 1) == 1
    return alone or (not kind & 0b1101 and tags.get(262) != 4)


def upright_rgb(image: Image.Image) -> UInt8Array:
    """Returns uint8 RGB [H,W,3]: EXIF orientation applied, alpha dropped, of 16 bits the high 8."""
    tags = getattr(image, "tag_v2", {})
    try:
        upright = ImageOps.exif_transpose(image)
    except (OSError, MemoryError):  # the pixels
        raise
    except Exception:  # the metadata, which decide nothing
        upright = image
    if upright.mode in _MODES_16_BIT:
        highest = 4095 if tags.get(258) == (12,) else 65535
        deep = np.asarray(upright).astype(np.uint32)
        grey = ((deep * 255 + highest // 2) // highest).astype(np.uint8)
        if tags.get(262) == 0:  # white is zero, and Pillow inverts 8 bits only
            grey = 255 - grey
        return np.repeat(grey[:, :, None], 3, axis=2)
    with warnings.catch_warnings():
        # Pillow's advice on a palette's transparency, which is dropped here.
        warnings.simplefilter("ignore", UserWarning)
        return np.array(upright.convert("RGB"), np.uint8, order="C")


def read_answer(output: str, media_type: str, body: bytes) -> Any:
    """Decodes the value of a `SegmentResult`. Raises: DecodeError."""
    kind = media_type.partition(";")[0].strip()
    try:
        if kind == "image/png":
            with Image.open(io.BytesIO(body), formats=("PNG",)) as image:
                value = np.array(image)
            if output == "label_map" and (value.ndim != 2 or value.dtype != np.uint8):
                raise DecodeError(
                    f"the label map is {value.dtype} {list(value.shape)}, not uint8 [H,W]"
                )
            return value
        if kind.endswith("json"):
            return json.loads(body)
        if kind.endswith("npy"):
            return np.load(io.BytesIO(body), allow_pickle=False)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DecodeError(f"the answer is no {kind}: {error}") from error
    raise DecodeError(f"the answer is {kind or 'of no type'}, which this client cannot read")


def overlay(
    rgb: UInt8Array,
    label_map: UInt8Array,
    palette: UInt8Array,
    alpha: float,
    background: int | None = None,
) -> UInt8Array:
    """Blends (1 - alpha) * rgb + alpha * colour, alpha to the nearest 1/255, void and background
    untouched: the server's overlay to the pixel, without asking it for a second inference.

    rgb: uint8 [H,W,3]. label_map: uint8 [H,W]. palette: uint8 RGB [256,3]. background: see
    `fcn_client.types.background_of`.
    """
    labels = Image.fromarray(label_map)
    untouched = (VOID, background)
    opacity = labels.point([0 if n in untouched else round(alpha * 255) for n in range(256)])
    labels.putpalette(palette.tobytes())
    mixed = Image.fromarray(rgb)
    mixed.paste(labels.convert("RGB"), (0, 0), opacity)
    return np.array(mixed)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()
