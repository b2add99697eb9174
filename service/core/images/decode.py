"""Decodes an image file's bytes to upright 8-bit RGB, and pads that to what a model takes.

What the network is to see much smaller is decoded to a half, a quarter or an eighth of its sides.

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
from service.core.images.scale import averaged, resized
from service.core.images.structure import check_structure
from service.core.images.tiff import CONVERT, Tiff, read_tiff
from service.core.types import MAX_SIDE_PX, Scale, UInt8Array
from service.errors import ImageTooLarge, InvalidImage, UnsupportedImageFormat

Size = tuple[int, int]
"""Height and width."""
Pixels = Callable[[int], tuple[UInt8Array, Size]]
"""Makes an image's pixels, reduced by so much, and tells its upright size."""

_REDUCTIONS: Final = (8, 4, 2)
"""Those that libjpeg has, and Pillow asks it for."""
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
    """Decodes to uint8 RGB [H,W,3], see `decode_reduced`."""
    return decode_reduced(body, header, 1, max_pixels=max_pixels, buffer=buffer)[0]


def decode_reduced(
    body: bytes,
    header: Header,
    reduction: int,
    *,
    max_pixels: int,
    buffer: memoryview | None = None,
) -> tuple[UInt8Array, Size]:
    """Decodes to uint8 RGB, upright, C-contiguous, and read-only, as it is the network's input and
    the overlay's background without a copy. Returns the upright image's height and width, too.

    reduction: 1, 2, 4 or 8; of H x W pixels are made ceil(H / reduction) x ceil(W / reduction).
    buffer: where the pixels are to be, of 3 bytes for each of the image; None: in memory of their
    own.

    CPU-bound; call it on a worker thread. Raises: InvalidImage, UnsupportedImageFormat,
    ImageTooLarge.
    """
    if header.format == "JPEG":
        check_whole(body, header)
    check_pixels(header.height, header.width, max_pixels)
    if not header.plain or header.several_scans:
        check_structure(body, header)
    stored = header.height, header.width
    made = reduced(*stored, reduction)
    rgb = _room(made, buffer)
    if header.plain and _by_libjpeg(body, header, rgb, reduction):
        upright = stored
    else:
        rgb, upright = _by_pillow(body, header, buffer, reduction)
        made = reduced(*upright, reduction)
        if rgb.shape[:2] != made:  # of all but JPEGs, and of those that Pillow reads otherwise
            smaller = averaged(rgb, reduction)
            rgb = _room(made, buffer)
            rgb[...] = smaller
    rgb.flags.writeable = False
    return rgb, upright


def reduced(height: int, width: int, reduction: int) -> Size:
    """Returns the sides of an image of which `reduction` pixels became one."""
    return -(-height // reduction), -(-width // reduction)


def reduction_to(height: int, width: int, size: Size) -> int:
    """Finds by how much an image may be reduced that is to have `size`, and not be enlarged."""
    for reduction in _REDUCTIONS:
        made = reduced(height, width, reduction)
        # Of a side below it Pillow makes no pixel.
        if made[0] >= size[0] and made[1] >= size[1] and min(height, width) >= reduction:
            return reduction
    return 1


def network_size(height: int, width: int, spec: InputSpec, scale: Scale) -> Size:
    """Returns the height and width at which the network is to see an image, see `Scale`."""
    longer = max(height, width)
    if isinstance(scale, int):
        side = min(longer, scale)
    else:
        first, learned, last = spec.range_from_px, spec.learned_side_px, spec.range_to_px
        if scale == "none" or first is None or learned is None or last is None:
            return height, width
        side = longer if first <= longer <= last else learned
    if side == longer:
        return height, width
    # To the nearest.
    height, width = (max(1, (2 * px * side + longer) // (2 * longer)) for px in (height, width))
    return height, width


def _room(size: Size, buffer: memoryview | None) -> UInt8Array:
    """Makes room for uint8 [H,W,3]."""
    shape = (*size, 3)
    return np.empty(shape, np.uint8) if buffer is None else np.ndarray(shape, np.uint8, buffer)


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


def network_image(pixels: Pixels, stored: Size, wanted: Size) -> tuple[UInt8Array, Size]:
    """Makes what the network is to see, uint8 RGB; returns the upright image's size, too.

    stored, wanted: sizes, before any orientation is applied.
    """
    rgb, size = pixels(reduction_to(*stored, wanted))
    if wanted != stored:
        rgb = resized(rgb, wanted if size == stored else wanted[::-1])
    return rgb, size


def pixels_of(rgb: UInt8Array, reduction: int) -> tuple[UInt8Array, Size]:
    """Reduces pixels that came as such, uint8 RGB [H,W,3]."""
    size = rgb.shape[0], rgb.shape[1]
    return (rgb if reduction == 1 else averaged(rgb, reduction)), size


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


def _by_libjpeg(body: bytes, header: Header, rgb: UInt8Array, reduction: int) -> bool:
    """Decodes a plain JPEG by libjpeg-turbo without Pillow around it; False: ask Pillow.

    The pixels are Pillow's, which has the same library inside; what is saved is Pillow's Python and
    its copy from four bytes a pixel to three. Of a file in which libjpeg finds so much as a warning
    this says nothing: so what is accepted, and what is said of what is not, is Pillow's in every
    case. The interpreter is free meanwhile.

    rgb: uint8 [H,W,3], in which they are put.
    """
    try:
        # libjpeg's own reading of the header, by which it then makes the array: nothing that
        # passed as small before can turn out large.
        height, width, color, _ = simplejpeg.decode_jpeg_header(body)
        if (height, width) != (header.height, header.width) or color not in _COLORS:
            return False
        least = (
            {}
            if reduction == 1
            else {
                "min_height": rgb.shape[0],
                "min_width": rgb.shape[1],
                "min_factor": reduction,
            }
        )
        simplejpeg.decode_jpeg(body, "RGB", strict=True, buffer=rgb, **least)
    except Exception:  # of libjpeg's complaints, all are ValueError so far
        return False
    return True


def _by_pillow(
    body: bytes, header: Header, buffer: memoryview | None, reduction: int
) -> tuple[UInt8Array, Size]:
    """Decodes as `decode_reduced`, but reduces nothing except JPEGs."""
    name = header.format
    try:
        tiff = read_tiff(body) if name == "TIFF" else None
        try:
            opened = body if tiff is None else tiff.body
            return _opened(opened, header, buffer, reduction, tiff)
        except (InvalidImage, UnsupportedImageFormat, ImageTooLarge, MemoryError):
            raise
        except Exception:
            rest = bare(body, name)
            if rest is None:
                raise
            return _opened(rest[0], header, buffer, reduction, None, rest[1])
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
    buffer: memoryview | None,
    reduction: int,
    tiff: Tiff | None,
    orientation: int | None = None,
) -> tuple[UInt8Array, Size]:
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
        if reduction > 1:  # of more than it does not read less
            image.draft(None, (max(1, image.width // reduction), max(1, image.height // reduction)))
        image.load()
        if tiff is not None:
            orientation = tiff.orientation
        elif orientation is None:
            orientation = _orientation(image)
        height, width = header.height, header.width
        made = image.height, image.width
        if orientation in (5, 6, 7, 8):
            height, width, made = width, height, made[::-1]
        upright = _room(made, buffer)
        stored = _STORED[orientation](upright) if orientation in _STORED else upright
        _put_rgb(image, stored, 16 if tiff is None else tiff.bits)
        if tiff is not None and tiff.inverted:
            np.subtract(255, upright, out=upright)
        return upright, (height, width)


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
