"""Reads what an image file's first bytes say of it, in microseconds and without decoding.

It is read once, on the event loop: admission takes the size from it, as an estimate of what the
image will cost, and `service.core.images.decode` which decoder the file is for. What may be decoded
is decided there, by the decoder's own reading of the header.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from service.errors import ImageTooLarge, InvalidImage, UnsupportedImageFormat

ACCEPTED: Final = "JPEG, PNG, WebP, BMP or TIFF"

# Each file is opened by the one decoder its first bytes name: fewer parsers see hostile bytes.
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
# A file of more segments before its pixels, or of more entries, is not worth the loop's time.
_MAX_SEGMENTS: Final = 256
_MAX_ENTRIES: Final = 256

# Source: ITU-T T.81, table B.1. Start of frame, any coding; C4, C8 and CC are other segments.
_ANY_FRAME: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PLAIN_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive, Huffman
_JPEG_LS_FRAME: Final = 0xF7  # ITU-T T.87
_SCAN: Final = 0xDA
_TABLES: Final = frozenset({0xC4, 0xDB, 0xDD, 0xFE})  # DHT, DQT, DRI, and comments
_APP0, _APP1, _APP2, _APP13, _APP14, _APP15 = 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xEF
# Shorter ones Pillow refuses, or libjpeg does not take for what they say they are.
_SHORTEST: Final = {(_APP0, b"JFIF"): 14, (_APP2, b"ICC_"): 14, (_APP14, b"Adob"): 12}
# Several images in one file, and Photoshop's list of resources: Pillow reads on in them, and
# refuses some.
_PILLOWS: Final = frozenset({(_APP2, b"MPF\x00"), (_APP13, b"Phot")})
_EXIF: Final = b"Exif\x00\x00"
_XMP: Final = b"http://ns.adobe.com/xap/1.0/\x00"

# Source: TIFF 6.0, section 2, and its supplement 1 (13: IFD).
_BYTES_OF_TYPE: Final = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4)
_SHORT, _RATIONAL = 3, 5
_WIDTH, _HEIGHT, _ORIENTATION = 0x0100, 0x0101, 0x0112
_ONE_OF: Final[Mapping[int, int]] = MappingProxyType(
    # The other two Pillow reads as it opens a JPEG, and on some types it fails.
    {_ORIENTATION: _SHORT, 0x011A: _RATIONAL, 0x0128: _SHORT}
)
_Entry = tuple[int, int, int, int]
"""Tag, type, count, and the four bytes of the value or of its place."""


@dataclass(frozen=True, slots=True)
class Header:
    """Holds what a file says of itself.

    format: as Pillow names it. height, width: as stored, before any EXIF orientation; 0 where the
    header does not say them soon enough. orientation: EXIF's tag, 0 where there is none; None where
    only Pillow can tell, and of all but JPEGs. plain: whether it is a JPEG for libjpeg alone.
    scan: where a JPEG's pixels begin, 0 where that was not found.
    """

    format: str
    height: int = 0
    width: int = 0
    orientation: int | None = None
    plain: bool = False
    scan: int = 0


def read_header(body: bytes, *, max_bytes: int) -> Header:
    """Reads the header of a file of `max_bytes` at most.

    Raises: InvalidImage, UnsupportedImageFormat, ImageTooLarge.
    """
    if not body:
        raise InvalidImage(f"the body is empty: send an image as {ACCEPTED}")
    if len(body) > max_bytes:
        raise ImageTooLarge(
            f"the file has {len(body)} bytes and this server takes {max_bytes}: compress it more "
            "or scale it down"
        )
    name = _format(body)
    if name == "JPEG":
        return _jpeg(body)
    try:
        height, width = _size(body, name)
    except struct.error:
        return Header(name)
    return Header(name, max(0, height), max(0, width))


def exif_orientation(block: bytes) -> int | None:
    """Reads the tag of the first directory; 0 where it has none, None where only Pillow can tell.

    It knows well-formed blocks only, where its answer is that of Pillow's `getexif`.

    block: a TIFF header and what follows, hostile bytes included.
    """
    directory = _directory(block)
    if directory is None:
        return None
    order, entries = directory
    found, outside = 0, 0
    seen: set[int] = set()
    for tag, kind, count, where in entries:
        if not 1 <= kind < len(_BYTES_OF_TYPE) or count < 1 or tag in seen:
            return None
        seen.add(tag)
        if tag in _ONE_OF and (kind, count) != (_ONE_OF[tag], 1):
            return None
        size = count * _BYTES_OF_TYPE[kind]
        if size > 4:
            outside += size
            if where + size > len(block) or outside > len(block):
                return None
        if tag == _ORIENTATION:
            found = _number(order, kind, where)
    # A zero that is written is not the same as none: Pillow then looks at no XMP.
    return None if _ORIENTATION in seen and found == 0 else found


def _format(body: bytes) -> str:
    """Names the Pillow plugin for these bytes."""
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "WEBP"
    for magic, name in _MAGIC:
        if body.startswith(magic):
            return name
    for offset, magic, name in _REFUSED_MAGIC:
        if body.startswith(magic, offset):
            raise UnsupportedImageFormat(f"{name} is not accepted: send {ACCEPTED}")
    raise UnsupportedImageFormat(f"the body is not an image this server knows: send {ACCEPTED}")


def _size(body: bytes, name: str) -> tuple[int, int]:
    """Returns (height, width), zeros if they are not said."""
    match name:
        case "PNG":
            width, height = struct.unpack_from(">II", body, 16)
            return height, width
        case "BMP":
            (header_bytes,) = struct.unpack_from("<I", body, 14)
            if header_bytes == 12:  # OS/2
                width, height = struct.unpack_from("<HH", body, 18)
            else:
                width, height = struct.unpack_from("<ii", body, 18)
            return abs(height), width  # negative: the rows go down
        case "WEBP":
            return _webp_size(body)
    directory = _directory(body)
    if directory is None:
        return 0, 0
    order, entries = directory
    found = {tag: _number(order, kind, where) for tag, kind, _, where in entries}
    return found.get(_HEIGHT, 0), found.get(_WIDTH, 0)


def _webp_size(body: bytes) -> tuple[int, int]:
    match body[12:16]:
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", body, 26)
            return height & 0x3FFF, width & 0x3FFF
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", body, 21)
            return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
        case b"VP8X":
            low = struct.unpack_from("<HBHB", body, 24)
            return (low[2] | low[3] << 16) + 1, (low[0] | low[1] << 16) + 1
    return 0, 0


def _jpeg(body: bytes) -> Header:
    """Walks the segments up to the pixels.

    Plain is what nearly every file is: Huffman-coded, 8 bits, grey or three components, upright,
    segment after segment without a gap.
    """
    at, plain = 2, True
    height = width = 0
    block: bytes | None = None
    xmp_turns = False
    for _ in range(_MAX_SEGMENTS):
        if at + 4 > len(body) or body[at] != 0xFF:
            break
        marker = body[at + 1]
        if marker == 0xFF:  # a fill byte
            at, plain = at + 1, False
            continue
        start, end = at + 4, at + 2 + int.from_bytes(body[at + 2 : at + 4])
        plain = plain and start <= end <= len(body)
        if marker == _SCAN:
            orientation = 0 if block is None else exif_orientation(block)
            # Pillow looks at XMP only where EXIF has no orientation.
            upright = orientation == 1 or (orientation == 0 and not xmp_turns)
            plain = plain and upright and height > 0
            return Header("JPEG", height, width, orientation, plain, at)
        if marker in _ANY_FRAME or marker == _JPEG_LS_FRAME:
            _check_frame(body[start:end], marker)
            plain = plain and not height and _is_plain_frame(body, marker, start, end)
            if not height and start + 5 <= len(body):
                height, width = struct.unpack_from(">HH", body, start + 1)
        elif _APP0 <= marker <= _APP15:
            kind = (marker, body[start : start + 4])
            plain = plain and kind not in _PILLOWS and end - start >= _SHORTEST.get(kind, 0)
            if marker == _APP1 and body.startswith(_EXIF, start):
                plain = plain and block is None
                block = body[start + len(_EXIF) : end]
            elif marker == _APP1 and body.startswith(_XMP, start):
                xmp_turns = xmp_turns or body.find(b"tiff:Orientation", start, end) >= 0
        elif marker not in _TABLES:
            plain = False
        at = end
    return Header("JPEG", height, width)


def _check_frame(frame: bytes, marker: int) -> None:
    """Refuses what whole files have that Pillow does not read."""
    if len(frame) < 6 or len(frame) != 6 + 3 * frame[5]:
        return  # damaged
    kind = "lossless (JPEG-LS)" if marker == _JPEG_LS_FRAME else ""
    if frame[0] in (12, 16):
        kind = f"of {frame[0]} bits a channel"
    elif frame[5] == 2:
        kind = "of two channels"
    if kind:
        raise UnsupportedImageFormat(
            f"the JPEG file is {kind}, which is not read: save it as an 8-bit RGB JPEG or PNG"
        )


def _is_plain_frame(body: bytes, marker: int, start: int, end: int) -> bool:
    """Tells whether it has 8 bits, one component or three, and a size."""
    return (
        marker in _PLAIN_FRAMES
        and end - start >= 6
        and body[start] == 8
        and body[start + 5] in (1, 3)
        and end - start == 6 + 3 * body[start + 5]
        and any(body[start + 1 : start + 3])
        and any(body[start + 3 : start + 5])
    )


def _directory(data: bytes) -> tuple[str, list[_Entry]] | None:
    """Returns the byte order and the entries of a TIFF's first directory, if they are there."""
    if data[:4] not in (b"II*\x00", b"MM\x00*") or len(data) < 8:
        return None
    order = "<" if data[:1] == b"I" else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    if at + 2 > len(data):
        return None
    (count,) = struct.unpack_from(order + "H", data, at)
    end = at + 2 + 12 * count
    if count > _MAX_ENTRIES or end + 4 > len(data):
        return None
    return order, list(struct.iter_unpack(order + "HHII", data[at + 2 : end]))


def _number(order: str, kind: int, where: int) -> int:
    """Reads the one number of an entry, 16 or 32 bits."""
    if kind != _SHORT:
        return where
    return where & 0xFFFF if order == "<" else where >> 16
