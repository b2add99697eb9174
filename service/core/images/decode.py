"""Decodes an image file's bytes to upright 8-bit RGB, and pads that to what a model takes.

Images are taken as training and evaluation take them (Pillow's `convert("RGB")`): an alpha
channel is dropped, not blended, since the colours beneath are the photo and a blend would invent
others; embedded colour profiles are ignored; of 16 bits the high 8 count. A JPEG with more
images inside (MPO, as phones write) is its first one. docs/images.md says it for every kind.

Pillow decodes, except plain JPEGs, of which libjpeg alone makes the same pixels sooner.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
import simplejpeg
from PIL import (
    ExifTags,
    Image,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from model.contract import InputSpec
from service.core.images.bare import bare
from service.core.images.header import Header
from service.core.images.tiff import CONVERT, Tiff, read_tiff
from service.core.types import UInt8Array
from service.errors import ImageTooLarge, InvalidImage, UnsupportedImageFormat

_COLORS: Final = frozenset({"Gray", "YCbCr", "RGB"})  # that libjpeg makes RGB of as Pillow does
_MODES_8_BIT: Final = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
)
_MODES_16_BIT: Final = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_TURNED: Final[Mapping[int, Image.Transpose]] = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)

# Pillow's own limit is a constant of its choosing and only warns up to twice that; `decode` checks
# the caller's limit at the same moment, before any pixel is read.
Image.MAX_IMAGE_PIXELS = None

# Pillow's own unpacking of uncompressed TIFFs scrambles some (16 bits in separate planes, YCbCr
# with fewer samples of colour); libtiff, which unpacks the compressed ones, has them right.
TiffImagePlugin.READ_LIBTIFF = True

# The other plugins; left to itself Pillow imports them in the first request, which takes 15 ms.
Image.preinit()


def decode(body: bytes, header: Header, *, max_pixels: int) -> UInt8Array:
    """Decodes to uint8 RGB [H,W,3], C-contiguous, upright; read-only, as it is the network's input
    and the overlay's background without a copy.

    CPU-bound; call it on a worker thread. Raises: InvalidImage, UnsupportedImageFormat,
    ImageTooLarge.
    """
    if header.format == "JPEG":
        check_whole(body, header)
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


def check_whole(body: bytes, header: Header) -> None:
    """Refuses a JPEG without its end marker. Raises: InvalidImage.

    What is there may be all of it or half: libjpeg fills up with grey, and tells nobody if zeros
    follow, as behind a download that broke off.
    """
    if body.rfind(b"\xff\xd9", header.scan) < 0:
        raise InvalidImage(
            "the JPEG file is truncated or damaged: its end marker is missing; send it whole"
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
        tiff = read_tiff(body) if name == "TIFF" else None
        if tiff is not None:
            check_pixels(*tiff.tile, max_pixels)
        try:
            return _opened(body if tiff is None else tiff.body, name, max_pixels, tiff)
        except (InvalidImage, UnsupportedImageFormat, ImageTooLarge, MemoryError):
            raise
        except Exception:
            rest = bare(body, name)
            if rest is None:
                raise
            return _opened(rest[0], name, max_pixels, None, rest[1])
    except (InvalidImage, UnsupportedImageFormat, ImageTooLarge):
        raise
    except MemoryError as error:
        raise ImageTooLarge("the image does not fit in memory: scale it down") from error
    except Exception as error:
        # On damaged bytes Pillow's plugins raise anything: OSError, SyntaxError, struct.error,
        # zlib.error, IndexError, ... Its text may quote the file, so it stays out of ours.
        raise InvalidImage(
            f"the {name} file is truncated or damaged, or of a rare kind: check that it opens in a "
            "viewer and send it whole, or save it anew as an 8-bit RGB PNG or JPEG"
        ) from error


def _opened(
    body: bytes, name: str, max_pixels: int, tiff: Tiff | None, orientation: int | None = None
) -> UInt8Array:
    """Raises what Pillow raises, besides."""
    try:
        image = Image.open(io.BytesIO(body), formats=(name,))
    except UnidentifiedImageError as error:
        if tiff is None:
            raise
        raise UnsupportedImageFormat(f"the TIFF file is {tiff.summary}: {CONVERT}") from error
    with image:
        _check_header(image, name, max_pixels)
        if name == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info:
            raise UnsupportedImageFormat(
                "the JPEG file is CMYK without Adobe's marker, so that nobody knows whether its "
                "zero is all ink or none: save it as RGB"
            )
        image.load()
        if tiff is not None:
            orientation = tiff.orientation
        elif orientation is None:
            orientation = _orientation(image)
        turn = _TURNED.get(orientation)
        upright = image if turn is None else image.transpose(turn)
        rgb = _to_rgb(upright, name, 16 if tiff is None else tiff.bits)
        if tiff is not None and tiff.inverted:
            rgb = 255 - rgb
        rgb.flags.writeable = False
        return rgb


def _check_header(image: Image.Image, name: str, max_pixels: int) -> None:
    """Judges it before `load`: nothing has been decompressed yet."""
    width, height = image.size
    if width < 1 or height < 1:
        raise InvalidImage(f"the {name} file says it is {height}x{width}: it has no pixels")
    check_pixels(height, width, max_pixels)
    # A JPEG's further images (MPO) are previews and depth maps, and of a TIFF the one page is
    # chosen; elsewhere which one is meant is anyone's guess.
    frames = 1 if name in ("JPEG", "TIFF") else getattr(image, "n_frames", 1)
    if frames > 1:
        raise UnsupportedImageFormat(
            f"the {name} file holds {frames} images: send each in a request of its own"
        )


def _orientation(image: Image.Image) -> int:
    """Reads EXIF's, or that of XMP where EXIF has none; damaged metadata count as upright."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as in `decode`; but an image is not lost for its metadata
        return 1
    return found if isinstance(found, int) else 1


def _to_rgb(image: Image.Image, name: str, bits: int) -> UInt8Array:
    if image.mode in _MODES_16_BIT:
        highest = (1 << bits) - 1
        deep = np.asarray(image).astype(np.uint32)
        grey = ((deep * 255 + highest // 2) // highest).astype(np.uint8)  # to the nearest
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode not in _MODES_8_BIT:
        raise UnsupportedImageFormat(
            f"the {name} file has pixels of kind {image.mode!r}: send 8 or 16 bits per channel, "
            "grey, RGB or CMYK"
        )
    if image.mode != "RGB":
        # Dropped like any alpha; Pillow would warn of a palette's transparency on conversion.
        image.info.pop("transparency", None)
        if image.mode == "La":  # grey times alpha, which Pillow makes RGB of in two steps
            image = image.convert("LA")
        image = image.convert("RGB")
    # Pillow packs its four bytes a pixel into three, a copy of its own that nobody else holds.
    return np.asarray(image)
