"""Decodes an image file's bytes to upright 8-bit RGB, and pads that to what a model takes.

Images are taken as training and evaluation take them (Pillow's `convert("RGB")`): an alpha
channel is dropped, not blended, since the colours beneath are the photo and a blend would invent
others; embedded colour profiles are ignored; of 16 bits the high 8 count. A JPEG with more
images inside (MPO, as phones write) is its first one.

Pillow decodes, except plain JPEGs, of which libjpeg alone makes the same pixels sooner.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, WebPImagePlugin  # noqa: F401

from model.contract import InputSpec
from service.core.images.header import Header
from service.core.types import UInt8Array
from service.errors import ImageTooLarge, InvalidImage, UnsupportedImageFormat

_COLORS: Final = frozenset({"Gray", "YCbCr", "RGB"})  # that libjpeg makes RGB of as Pillow does
_MODES_8_BIT: Final = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
)
_MODES_16_BIT: Final = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})

# Pillow's own limit is a constant of its choosing and only warns up to twice that; `decode` checks
# the caller's limit at the same moment, before any pixel is read.
Image.MAX_IMAGE_PIXELS = None

# The other plugins; left to itself Pillow imports them in the first request, which takes 15 ms.
Image.preinit()


def decode(body: bytes, header: Header, *, max_pixels: int) -> UInt8Array:
    """Decodes to uint8 RGB [H,W,3], C-contiguous, upright; read-only, as it is the network's input
    and the overlay's background without a copy.

    CPU-bound; call it on a worker thread. Raises: InvalidImage, UnsupportedImageFormat,
    ImageTooLarge.
    """
    if header.plain and header.height * header.width <= max_pixels:
        rgb = _by_libjpeg(body, header)
        if rgb is not None:
            return rgb
    return _by_pillow(body, header.format, max_pixels)


def check_pixels(height: int, width: int, max_pixels: int) -> None:
    """Refuses what has too many. Raises: ImageTooLarge."""
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"the image is {height}x{width} (height x width), {width * height} pixels, and this "
            f"server takes {max_pixels}: scale it down"
        )


def prepare(rgb: UInt8Array, spec: InputSpec) -> UInt8Array:
    """Pads bottom and right with zeros up to the model's smallest side and multiple.

    rgb: uint8 [H,W,3]. Pixels are never resampled: the answer is cut to their size again. The
    tensor is C-contiguous.

    Raises: ImageTooLarge when a side is above the model's, before or after padding.
    """
    height, width = rgb.shape[:2]
    padded = (padded_side(height, spec), padded_side(width, spec))
    if spec.max_side_px is not None and max(padded) > spec.max_side_px:
        limit = spec.max_side_px - spec.max_side_px % spec.multiple_of_px
        raise ImageTooLarge(
            f"the image is {height}x{width} (height x width) and this model takes sides up to "
            f"{limit} px: scale it down"
        )
    if padded == (height, width):
        return np.ascontiguousarray(rgb)
    tensor = np.zeros((*padded, 3), np.uint8)
    tensor[:height, :width] = rgb
    return tensor


def padded_side(px: int, spec: InputSpec) -> int:
    """Returns the least side that holds `px` and is one of the model's multiples."""
    return -(-max(px, spec.min_side_px) // spec.multiple_of_px) * spec.multiple_of_px


def _by_libjpeg(body: bytes, header: Header) -> UInt8Array | None:
    """Decodes a plain JPEG by libjpeg-turbo without Pillow around it; None: ask Pillow.

    The pixels are Pillow's, which has the same library inside; what is saved is Pillow's Python and
    its copy from four bytes a pixel to three. Of a file in which libjpeg finds so much as a warning
    this says nothing: so what is accepted, and what is said of what is not, is Pillow's in every
    case. The interpreter is free meanwhile.
    """
    try:
        # libjpeg's own reading of the header, by which it then makes the array: nothing that
        # passed as small before can turn out large.
        height, width, color, _ = simplejpeg.decode_jpeg_header(body)
        if (height, width) != (header.height, header.width) or color not in _COLORS:
            return None
        rgb: UInt8Array = simplejpeg.decode_jpeg(body, "RGB", strict=True)
    except Exception:  # of libjpeg's complaints, all are ValueError so far
        return None
    rgb.flags.writeable = False
    return rgb


def _by_pillow(body: bytes, name: str, max_pixels: int) -> UInt8Array:
    try:
        with Image.open(io.BytesIO(body), formats=(name,)) as image:
            _check_header(image, name, max_pixels)
            image.load()
            return _to_rgb(_upright(image), name)
    except (InvalidImage, UnsupportedImageFormat, ImageTooLarge):
        raise
    except MemoryError as error:
        raise ImageTooLarge("the image does not fit in memory: scale it down") from error
    except Exception as error:
        # On damaged bytes Pillow's plugins raise anything: OSError, SyntaxError, struct.error,
        # zlib.error, IndexError, ... Its text may quote the file, so it stays out of ours.
        raise InvalidImage(
            f"the {name} file is truncated or damaged: check that it opens in a viewer and send "
            "it whole"
        ) from error


def _check_header(image: Image.Image, name: str, max_pixels: int) -> None:
    """Judges it before `load`: nothing has been decompressed yet."""
    width, height = image.size
    if width < 1 or height < 1:
        raise InvalidImage(f"the {name} file says it is {height}x{width}: it has no pixels")
    check_pixels(height, width, max_pixels)
    # A JPEG's further images (MPO) are previews and depth maps; elsewhere which one is meant is
    # anyone's guess.
    frames = getattr(image, "n_frames", 1)
    if name != "JPEG" and frames > 1:
        raise UnsupportedImageFormat(
            f"the {name} file holds {frames} images: send each in a request of its own"
        )


def _upright(image: Image.Image) -> Image.Image:
    """Turns and mirrors it as EXIF orientation 1..8 asks; damaged EXIF counts as upright."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as in `decode`; but an image is not lost for its metadata
        return image
    return image if orientation == 1 else ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image, name: str) -> UInt8Array:
    if image.mode in _MODES_16_BIT:
        grey16 = np.asarray(image).astype(np.uint32)
        grey = ((grey16 + 128) // 257).astype(np.uint8)  # 65535 -> 255, to the nearest
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode not in _MODES_8_BIT:
        raise UnsupportedImageFormat(
            f"the {name} file has pixels of kind {image.mode!r}: send 8 or 16 bits per channel, "
            "grey, RGB or CMYK"
        )
    if image.mode != "RGB":
        # Dropped like any alpha; Pillow would warn of a palette's transparency on conversion.
        image.info.pop("transparency", None)
        image = image.convert("RGB")
    # Pillow packs its four bytes a pixel into three, a copy of its own that nobody else holds.
    return np.asarray(image)
