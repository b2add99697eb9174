"""Reads what an image file's first bytes say of it, in microseconds and without decoding.

It is read once, on the event loop: admission takes from it what the image will cost, and
`service.core.images.decode` which decoder the file is for. A file that does not say plainly how
large it is is refused here; one whose decoder finds another size, there.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from service.core.images.tiff import stored_in
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
_SINGLE_PASS: Final = frozenset({0xC0, 0xC1, 0xC3, 0xC9})  # if the first scan has every component
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
_ORIENTATION = 0x0112
_ONE_OF: Final[Mapping[int, int]] = MappingProxyType(
    # The other two Pillow reads as it opens a JPEG, and on some types it fails.
    {_ORIENTATION: _SHORT, 0x011A: _RATIONAL, 0x0128: _SHORT}
)
_Entry = tuple[int, int, int, int]
"""Tag, type, count, and the four bytes of the value or of its place."""
_NO_PAYLOAD: Final = frozenset({0x01, *range(0xD0, 0xDA)})  # TEM, RST, SOI, EOI

# What decoding takes, in bytes of memory for each pixel. Measured in processes of their own at 16
# million pixels (bench/LOG.md, "what decoding takes"). The result has 3. Pillow has an image of its
# own beside it, and what a decoder took besides is free before the result is touched.
_RGB: Final = 3
_SINGLE, _SINGLE_16, _MANY = 1, 2, 4
"""Bytes in Pillow of one channel of up to 8 bits, of one of 16, of several channels."""
_COEFFICIENT: Final = 2
"""Bytes of each coefficient of a JPEG; of all of them if they come in several scans."""
_WEBP, _BMP_RUNS = 15, 3
_PNG_SINGLES: Final = frozenset({0, 3})  # grey, palette
_BMP_IN_RUNS: Final = frozenset({b"\1\0\0\0", b"\2\0\0\0"})
_UPLOAD_COPIES: Final = 3
"""Copies of the upload meanwhile: two for a process that decodes, and one without metadata."""


@dataclass(frozen=True, slots=True)
class Header:
    """Holds what a file says of itself.

    format: as Pillow names it. height, width: as stored, before any EXIF orientation, both above 0.
    orientation: EXIF's tag, 0 where there is none; None where only Pillow can tell, and of all but
    JPEGs. plain: whether it is a JPEG for libjpeg alone. scan: where a JPEG's pixels begin.
    several_scans: whether that JPEG's pixels come in more than one scan. decode_bytes: memory that
    decoding takes at its peak, besides the upload itself.
    """

    format: str
    height: int
    width: int
    orientation: int | None = None
    plain: bool = False
    scan: int = 0
    several_scans: bool = False
    decode_bytes: int = 0

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def reduced_bytes(self, reduction: int) -> int:
        """Returns `decode_bytes` where a side is decoded to one pixel in so many.

        Only libjpeg alone makes fewer from the start, for certain.
        """
        if not self.plain:
            return self.decode_bytes
        made = -(-self.height // reduction) * -(-self.width // reduction)
        return self.decode_bytes - _RGB * (self.pixels - made)


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
        height, width, in_pillow, codec = _stored(body, name)
    except struct.error as error:
        raise InvalidImage(damaged(name)) from error
    if height < 1 or width < 1:
        raise InvalidImage(f"the {name} file says it is {height}x{width}: it has no pixels")
    cost = round(height * width * (in_pillow + max(_RGB, codec))) + _UPLOAD_COPIES * len(body)
    return Header(name, height, width, decode_bytes=cost)


def damaged(name: str) -> str:
    """Says what to do with a file that no decoder makes sense of."""
    return (
        f"the {name} file is truncated or damaged, or of a rare kind: check that it opens in a "
        "viewer and send it whole, or save it anew as an 8-bit RGB PNG or JPEG"
    )


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


def _stored(body: bytes, name: str) -> tuple[int, int, int, float]:
    """Returns height and width, and the bytes that Pillow and the codec take for each pixel.

    Raises: struct.error, and as `stored_in`.
    """
    match name:
        case "PNG":
            kind, width, height, depth, color = struct.unpack_from(">4sIIBB", body, 12)
            if kind != b"IHDR":
                raise struct.error
            if color not in _PNG_SINGLES:
                return height, width, _MANY, 0
            return height, width, _SINGLE if depth <= 8 else _SINGLE_16, 0
        case "BMP":
            (header_bytes,) = struct.unpack_from("<I", body, 14)
            code = "<HHHH" if header_bytes == 12 else "<iiHH"  # OS/2, Windows
            width, height, _, depth = struct.unpack_from(code, body, 18)
            in_runs = header_bytes != 12 and body[30:34] in _BMP_IN_RUNS
            in_pillow = _SINGLE if depth <= 8 else _MANY
            # Negative: the rows go down.
            return abs(height), width, in_pillow, _BMP_RUNS if in_runs else 0
        case "WEBP":
            return *_webp_size(body), _MANY, _WEBP
    return stored_in(body)


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
    """Walks the segments up to the pixels, as Pillow and libjpeg do.

    Plain is what nearly every file is: Huffman-coded, 8 bits, grey or three components, upright,
    segment after segment without a gap.
    """
    at, plain = 2, True
    frame, coding = b"", 0
    block: bytes | None = None
    xmp_turns = False
    for _ in range(_MAX_SEGMENTS):
        marker = body[at + 1 : at + 2]
        if body[at : at + 1] != b"\xff" or marker in (b"\x00", b"\xff"):
            # Bytes between segments, an escaped 255, or one that fills up.
            at, plain = body.find(b"\xff", at + 1), False
            if at < 0:
                break
            continue
        start, end = at + 4, at + 2 + int.from_bytes(body[at + 2 : at + 4])
        if not marker or start >= len(body):
            break
        code = marker[0]
        if code in _NO_PAYLOAD:
            at, plain = at + 2, False
            continue
        plain = plain and start <= end <= len(body)
        if code == _SCAN:
            if not frame:
                break
            orientation = 0 if block is None else exif_orientation(block)
            # Pillow looks at XMP only where EXIF has no orientation.
            upright = orientation == 1 or (orientation == 0 and not xmp_turns)
            several = coding not in _SINGLE_PASS or body[start] < frame[5]
            return _of_frame(body, frame, orientation, plain and upright, at, several)
        if code in _ANY_FRAME or code == _JPEG_LS_FRAME:
            if frame:
                raise InvalidImage("the JPEG file says twice how large it is: save it anew")
            frame, coding = body[start:end], code
            _check_frame(frame, code)
            if len(frame) < 6:
                break
            plain = plain and _is_plain_frame(frame, code)
        elif _APP0 <= code <= _APP15:
            kind = (code, body[start : start + 4])
            plain = plain and kind not in _PILLOWS and end - start >= _SHORTEST.get(kind, 0)
            if code == _APP1 and body.startswith(_EXIF, start):
                plain = plain and block is None
                block = body[start + len(_EXIF) : end]
            elif code == _APP1 and body.startswith(_XMP, start):
                xmp_turns = xmp_turns or body.find(b"tiff:Orientation", start, end) >= 0
        elif code not in _TABLES:
            plain = False
        at = max(end, at + 2)
    else:
        raise InvalidImage(
            f"the JPEG file has more than {_MAX_SEGMENTS} segments before its pixels: save it anew "
            "without its metadata"
        )
    raise InvalidImage(damaged("JPEG"))


def _of_frame(
    body: bytes, frame: bytes, orientation: int | None, plain: bool, scan: int, several: bool
) -> Header:
    """Returns the header of a JPEG whose frame segment is `frame`. Raises: InvalidImage."""
    height, width = struct.unpack_from(">HH", frame, 1)
    if height < 1 or width < 1:
        raise InvalidImage(f"the JPEG file says it is {height}x{width}: it has no pixels")
    codec = 0.0
    if several:
        # Each component has as many blocks as its sampling factors say, of those of the finest.
        blocks = [(factor >> 4) * (factor & 15) for factor in frame[7::3]]
        codec = _COEFFICIENT * sum(blocks) / max(1, *blocks, 1)
    if plain:
        pixel_bytes = _RGB + codec
    else:
        pixel_bytes = (_SINGLE if frame[5] == 1 else _MANY) + max(_RGB, codec)
    cost = round(height * width * pixel_bytes) + _UPLOAD_COPIES * len(body)
    return Header("JPEG", height, width, orientation, plain, scan, several, cost)


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


def _is_plain_frame(frame: bytes, marker: int) -> bool:
    """Tells whether it has 8 bits, and one component or three."""
    return (
        marker in _PLAIN_FRAMES
        and frame[0] == 8
        and frame[5] in (1, 3)
        and len(frame) == 6 + 3 * frame[5]
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
