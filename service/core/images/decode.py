"""A picture file's bytes -> upright 8-bit RGB.

Pictures are taken as training and evaluation take them (Pillow's `convert("RGB")`): an alpha
channel is dropped, not blended, since the colours beneath are the photo and a blend would invent
others; embedded colour profiles are ignored; of 16 bits the high 8 count. A JPEG with more
pictures inside (MPO, as phones write) is its first one.

Pillow decodes, except plain JPEGs: `service.core.images.jpeg` makes the same pixels of them sooner.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, WebPImagePlugin  # noqa: F401

from service.core.images import jpeg
from service.errors import ImageTooLarge, InvalidImage, UnsupportedImageFormat

ACCEPTED: Final = "JPEG, PNG, WebP, BMP or TIFF"

# Each file is opened by the one plugin its first bytes name: fewer parsers see hostile bytes.
_MAGIC: Final = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
)
_REFUSED_MAGIC: Final = (
    (0, b"GIF8", "GIF"),
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL \r\n\x87\n", "JPEG XL"),
    (4, b"jP  \r\n\x87\n", "JPEG 2000"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
)
_MODES_8_BIT: Final = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
)
_MODES_16_BIT: Final = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})

# Pillow's own limit is a constant of its choosing and only warns up to twice that; `decode` checks
# the caller's limit at the same moment, before any pixel is read.
Image.MAX_IMAGE_PIXELS = None

# The other plugins; left to itself Pillow imports them in the first request, which takes 15 ms.
Image.preinit()


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """`rgb`: uint8 RGB [H,W,3], C-contiguous, upright; read-only, as it is the network's input and
    the overlay's background without a copy. `format`: "JPEG", "PNG", ..., "RGB".
    """

    rgb: npt.NDArray[np.uint8]
    format: str


def decode(body: bytes, *, max_bytes: int, max_pixels: int) -> DecodedImage:
    """CPU-bound; call it on a worker thread.

    Raises: InvalidImage, UnsupportedImageFormat, ImageTooLarge.
    """
    if not body:
        raise InvalidImage(f"the body is empty: send a picture as {ACCEPTED}")
    if len(body) > max_bytes:
        raise ImageTooLarge(
            f"the file has {len(body)} bytes and this server takes {max_bytes}: compress it more "
            "or scale it down"
        )
    name = _sniff(body)
    if name == "JPEG" and (rgb := jpeg.decode(body, max_pixels=max_pixels)) is not None:
        return DecodedImage(rgb, name)
    return DecodedImage(_by_pillow(body, name, max_pixels), name)


def undecoded(rgb: npt.NDArray[np.uint8], *, max_pixels: int) -> DecodedImage:
    """Pixels that came as such, uint8 RGB [H,W,3]. Raises: ImageTooLarge."""
    height, width = rgb.shape[:2]
    _check_pixels(height, width, max_pixels)
    return DecodedImage(rgb, "RGB")


def _by_pillow(body: bytes, name: str, max_pixels: int) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(body), formats=(name,)) as image:
            _check_header(image, name, max_pixels)
            image.load()
            return _to_rgb(_upright(image), name)
    except (InvalidImage, UnsupportedImageFormat, ImageTooLarge):
        raise
    except MemoryError as error:
        raise ImageTooLarge("the picture does not fit in memory: scale it down") from error
    except Exception as error:
        # On damaged bytes Pillow's plugins raise anything: OSError, SyntaxError, struct.error,
        # zlib.error, IndexError, ... Its text may quote the file, so it stays out of ours.
        raise InvalidImage(
            f"the {name} file is truncated or damaged: check that it opens in a viewer and send "
            "it whole"
        ) from error


def _sniff(body: bytes) -> str:
    """The Pillow plugin for these bytes."""
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "WEBP"
    for magic, name in _MAGIC:
        if body.startswith(magic):
            return name
    for offset, magic, name in _REFUSED_MAGIC:
        if body.startswith(magic, offset):
            raise UnsupportedImageFormat(f"{name} is not accepted: send {ACCEPTED}")
    raise UnsupportedImageFormat(f"the body is not a picture this server knows: send {ACCEPTED}")


def _check_header(image: Image.Image, name: str, max_pixels: int) -> None:
    """Before `load`: nothing has been decompressed yet."""
    width, height = image.size
    if width < 1 or height < 1:
        raise InvalidImage(f"the {name} file says it is {height}x{width}: it has no pixels")
    _check_pixels(height, width, max_pixels)
    # A JPEG's further pictures (MPO) are previews and depth maps; elsewhere which one is meant is
    # anyone's guess.
    frames = getattr(image, "n_frames", 1)
    if name != "JPEG" and frames > 1:
        raise UnsupportedImageFormat(
            f"the {name} file holds {frames} pictures: send each in a request of its own"
        )


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"the picture is {height}x{width} (height x width), {width * height} pixels, and this "
            f"server takes {max_pixels}: scale it down"
        )


def _upright(image: Image.Image) -> Image.Image:
    """Turned and mirrored as EXIF orientation 1..8 asks; damaged EXIF counts as upright."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as in `decode`; but a picture is not lost for its metadata
        return image
    return image if orientation == 1 else ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image, name: str) -> npt.NDArray[np.uint8]:
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
