"""Reads the frames of a moving image, as uint8 RGB [H,W,3].

Pillow reads animated GIF, WebP, PNG and TIFF of several pages; what only a video decoder reads
needs PyAV (the `video` extra). A TIFF's pages that are a reduced copy or a mask of another, as
GeoTIFF's overviews, are no frames; a TIFF with no more than one other is an image, which the server
reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageSequence, TiffImagePlugin

from fcn_client.errors import InvalidInput
from fcn_client.images import is_frame, upright_rgb
from fcn_client.types import UInt8Array

VIDEO: Final = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})
MAYBE_MOVING: Final = frozenset({".gif", ".png", ".tif", ".tiff", ".webp"})


def is_moving(path: Path) -> bool:
    """Tells a video by its name, an image by its frames; False where it cannot be read."""
    suffix = path.suffix.lower()
    if suffix in VIDEO or suffix == ".gif":  # the server takes no GIF, not even a still one
        return True
    if suffix not in MAYBE_MOVING:
        return False
    try:
        with Image.open(path) as image:
            return _count(image) > 1
    except Exception:  # on damaged bytes Pillow's plugins raise anything; the server says what
        return False


def count(path: Path) -> int | None:
    """Counts the frames, where that can be known without decoding them."""
    if path.suffix.lower() in VIDEO:
        return None
    try:
        with Image.open(path) as image:
            return _count(image)
    except Exception:  # as above; `frames` reports it
        return None


def frames(path: Path) -> Iterator[UInt8Array]:
    """Yields them in order. Raises: InvalidInput, at the frame that cannot be read."""
    return _decoded(path) if path.suffix.lower() in VIDEO else _pillow(path)


def _pillow(path: Path) -> Iterator[UInt8Array]:
    try:
        with Image.open(path) as image:
            for frame in ImageSequence.Iterator(image):
                if is_frame(frame):
                    yield upright_rgb(frame)
    except Exception as error:  # as above
        raise InvalidInput(f"{path} cannot be read as an image with frames") from error


def _count(image: Image.Image) -> int:
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(getattr(image, "n_frames", 1))
    return sum(1 for frame in ImageSequence.Iterator(image) if is_frame(frame))


def _decoded(path: Path) -> Iterator[UInt8Array]:
    try:
        import av
    except ModuleNotFoundError as error:
        raise InvalidInput(f"{path} is a video, which needs PyAV: pip install av") from error
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InvalidInput(f"{path} has no images in it")
            for frame in container.decode(video=0):
                yield turned(frame)
    except InvalidInput:
        raise
    except Exception as error:  # FFmpeg's, and what PyAV makes of streams that are no images
        raise InvalidInput(f"{path} cannot be read as a video: {error}") from error


def turned(frame: Any) -> UInt8Array:
    """Turns a frame of PyAV's upright: phones note how they were held, in degrees counterclockwise.

    Source: FFmpeg, libavutil/display.h, av_display_rotation_get.
    """
    rgb = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    return np.ascontiguousarray(np.rot90(rgb, round(getattr(frame, "rotation", 0) / 90)))
