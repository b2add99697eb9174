"""Decodes an image file's bytes to upright 8-bit RGB, and pads that to what a model takes.

Images are taken as training and evaluation take them (Pillow's `convert("RGB")`): an alpha
channel is dropped, not blended, since the colours beneath are the photo and a blend would invent
others; embedded colour profiles are ignored; of 16 bits the high 8 count. A JPEG with more
images inside (MPO, as phones write) is its first one. docs/images.md says it for every kind.

Pillow decodes, except plain JPEGs, of which libjpeg alone makes the same pixels sooner.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
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
from service.core.images.header import Header, damaged
from service.core.images.structure import check_structure
from service.core.images.tiff import CONVERT, Tiff, read_tiff
from service.core.types import UInt8Array
from service.errors import ImageTooLarge, InvalidImage, UnsupportedImageFormat

MAX_SIDE_PX: Final = 65_535
"""No JPEG has more. A network fills each side up to its stride, and tiles are laid along it."""

_COLORS: Final = frozenset({"Gray", "YCbCr", "RGB"})  # that libjpeg makes RGB of as Pillow does
_MODES_8_BIT: Final = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
)
_MODES_16_BIT: Final = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_STORED: Final[Mapping[int, Callable[[UInt8Array], UInt8Array]]] = MappingProxyType(
    # EXIF's orientations: the upright image, looked at in the order in which the file stores it.
    {
        2: lambda upright: upright[:, ::-1],
        3: lambda upright: upright[::-1, ::-1],
        4: lambda upright: upright[::-1],
        5: lambda upright: upright.transpose(1, 0, 2),
        6: lambda upright: upright[:, ::-1].transpose(1, 0, 2),
        7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
        8: lambda upright: upright[::-1].transpose(1, 0, 2),
    }
)
_STRIP_PIXELS: Final = 1 << 16
"""Pixels of Pillow's that become RGB at a time: of a whole image it would make copies, and each
takes four bytes a pixel."""

# Pillow's own limit is a constant of its choosing and only warns up to twice that; `decode` checks
# the caller's limit at the same moment, before any pixel is read.
Image.MAX_IMAGE_PIXELS = None

# Pillow's own unpacking of uncompressed TIFFs scrambles some (16 bits in separate planes, YCbCr
# with fewer samples of colour); libtiff, which unpacks the compressed ones, has them right.
TiffImagePlugin.READ_LIBTIFF = True

# The other plugins; left to itself Pillow imports them in the first request, which takes 15 ms.
Image.preinit()


def decode(
    body: bytes, header: Header, *, max_pixels: int, buffer: memoryview | None = None
) -> UInt8Array:
    """Decodes to uint8 RGB [H,W,3], C-contiguous, upright; read-only, as it is the network's input
    and the overlay's background without a copy.

    buffer: where the pixels are to be, of at least as many bytes; None: in memory of their own.

    CPU-bound; call it on a worker thread. Raises: InvalidImage, UnsupportedImageFormat,
    ImageTooLarge.
    """
    if header.format == "JPEG":
        check_whole(body, header)
    check_pixels(header.height, header.width, max_pixels)
    n_bytes = 3 * header.pixels
    rgb = (
        np.empty(n_bytes, np.uint8)
        if buffer is None
        else np.frombuffer(buffer, count=n_bytes, dtype=np.uint8)
    )
    if not header.plain or header.several_scans:
        check_structure(body, header)
    if header.plain and _by_libjpeg(body, header, rgb):
        rgb = rgb.reshape(header.height, header.width, 3)
    else:
        rgb = _by_pillow(body, header, rgb)
    rgb.flags.writeable = False
    return rgb


def check_pixels(height: int, width: int, max_pixels: int) -> None:
    """Refuses what has too many, or a side that is too long. Raises: ImageTooLarge."""
    if max(width, height) > MAX_SIDE_PX:
        raise ImageTooLarge(
            f"the image is {height}x{width} (height x width), and this server takes sides up to "
            f"{MAX_SIDE_PX} px: cut it in parts"
        )
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


def filled_side(px: int, spec: InputSpec) -> int:
    """Returns the side for which the network computes: the next multiple of its stride."""
    return -(-px // spec.stride) * spec.stride


def network_pixels(height: int, width: int, spec: InputSpec) -> int:
    """Returns for how many pixels the network computes: an image of one row costs it a stride of
    them."""
    return filled_side(height, spec) * filled_side(width, spec)


def _by_libjpeg(body: bytes, header: Header, rgb: UInt8Array) -> bool:
    """Decodes a plain JPEG by libjpeg-turbo without Pillow around it; False: ask Pillow.

    The pixels are Pillow's, which has the same library inside; what is saved is Pillow's Python and
    its copy from four bytes a pixel to three. Of a file in which libjpeg finds so much as a warning
    this says nothing: so what is accepted, and what is said of what is not, is Pillow's in every
    case. The interpreter is free meanwhile.

    rgb: uint8, as many as the pixels need, in which they are put.
    """
    try:
        # libjpeg's own reading of the header, by which it then makes the array: nothing that
        # passed as small before can turn out large.
        height, width, color, _ = simplejpeg.decode_jpeg_header(body)
        if (height, width) != (header.height, header.width) or color not in _COLORS:
            return False
        simplejpeg.decode_jpeg(body, "RGB", strict=True, buffer=rgb)
    except Exception:  # of libjpeg's complaints, all are ValueError so far
        return False
    return True


def _by_pillow(body: bytes, header: Header, rgb: UInt8Array) -> UInt8Array:
    name = header.format
    try:
        tiff = read_tiff(body) if name == "TIFF" else None
        try:
            return _opened(body if tiff is None else tiff.body, header, rgb, tiff)
        except (InvalidImage, UnsupportedImageFormat, ImageTooLarge, MemoryError):
            raise
        except Exception:
            rest = bare(body, name)
            if rest is None:
                raise
            return _opened(rest[0], header, rgb, None, rest[1])
    except (InvalidImage, UnsupportedImageFormat, ImageTooLarge):
        raise
    except MemoryError as error:
        raise ImageTooLarge("the image does not fit in memory: scale it down") from error
    except Exception as error:
        # On damaged bytes Pillow's plugins raise anything: OSError, SyntaxError, struct.error,
        # zlib.error, IndexError, ... Its text may quote the file, so it stays out of ours.
        raise InvalidImage(damaged(name)) from error


def _opened(
    body: bytes,
    header: Header,
    rgb: UInt8Array,
    tiff: Tiff | None,
    orientation: int | None = None,
) -> UInt8Array:
    """Raises what Pillow raises, besides."""
    name = header.format
    try:
        image = Image.open(io.BytesIO(body), formats=(name,))
    except UnidentifiedImageError as error:
        if tiff is None:
            raise
        raise UnsupportedImageFormat(f"the TIFF file is {tiff.summary}: {CONVERT}") from error
    with image:
        _check_header(image, header)
        if name == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info:
            raise UnsupportedImageFormat(
                "the JPEG file is CMYK without Adobe's marker, so that nobody knows whether its "
                "zero is all ink or none: save it as RGB"
            )
        if image.mode not in _MODES_8_BIT | _MODES_16_BIT:
            raise UnsupportedImageFormat(
                f"the {name} file has pixels of kind {image.mode!r}: send 8 or 16 bits per "
                "channel, grey, RGB or CMYK"
            )
        image.load()
        if tiff is not None:
            orientation = tiff.orientation
        elif orientation is None:
            orientation = _orientation(image)
        height, width = header.height, header.width
        if orientation in (5, 6, 7, 8):
            height, width = width, height
        upright = rgb.reshape(height, width, 3)
        stored = _STORED[orientation](upright) if orientation in _STORED else upright
        _put_rgb(image, stored, 16 if tiff is None else tiff.bits)
        if tiff is not None and tiff.inverted:
            np.subtract(255, upright, out=upright)
        return upright


def _check_header(image: Image.Image, header: Header) -> None:
    """Judges it before `load`: nothing has been decompressed yet."""
    name = header.format
    if image.size != (header.width, header.height):
        # What was admitted, and has its room, is of another size.
        raise InvalidImage(f"the {name} file says two sizes of itself: save it anew")
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


def _put_rgb(image: Image.Image, stored: UInt8Array, bits: int) -> None:
    """Puts an image's pixels into uint8 [H,W,3], rows as they are stored."""
    # Dropped like any alpha; Pillow would warn of a palette's transparency on conversion.
    image.info.pop("transparency", None)
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(height, top + rows)))
        if image.mode in _MODES_16_BIT:
            highest = (1 << bits) - 1
            deep = np.asarray(strip).astype(np.uint32)
            grey = (deep * 255 + highest // 2) // highest  # to the nearest
            stored[top : top + rows] = grey[:, :, None]
            continue
        if strip.mode == "La":  # grey times alpha, which Pillow makes RGB of in two steps
            strip = strip.convert("LA")
        stored[top : top + rows] = np.asarray(strip.convert("RGB"))
