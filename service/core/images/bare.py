"""Takes the metadata out of a file that Pillow could not read, in case they were the reason.

Text, colour profile, EXIF and XMP that are damaged, or larger than Pillow allows, do not decide
about the pixels. An orientation survives if its EXIF is well-formed.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from service.core.images.header import exif_orientation

_PNG_START: Final = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT: Final = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
# By these, of these lengths, an animation is told.
_PNG_ANIMATION: Final = {b"acTL": 8, b"fcTL": 26}
_EXIF: Final = b"Exif\x00\x00"
_SCAN, _COMMENT, _APP0, _APP1, _APP14, _APP15 = 0xDA, 0xFE, 0xE0, 0xE1, 0xEE, 0xEF
# JFIF and Adobe say which colours the three or four components are; the least that they take.
_JPEG_KEPT: Final = {_APP0: 14, _APP14: 12}


def bare(body: bytes, name: str) -> tuple[bytes, int] | None:
    """Returns the file without its metadata and the orientation, 1..8; None where it cannot tell.

    name: the format, as Pillow calls it.
    """
    without = {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp}.get(name)
    if without is None:
        return None
    try:
        kept, exif = without(body)
    except (struct.error, IndexError):
        return None
    orientation = exif_orientation(exif) or 1
    return kept, orientation if orientation <= 8 else 1


def _png(body: bytes) -> tuple[bytes, bytes]:
    kept, exif, at = [_PNG_START], b"", len(_PNG_START)
    while at < len(body):
        length, kind = struct.unpack_from(">I4s", body, at)
        chunk = body[at : at + 12 + length]
        if kind in _PNG_KEPT or _PNG_ANIMATION.get(kind) == length:
            kept.append(chunk)
        elif kind == b"eXIf" and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:]):
            exif = chunk[8:-4]
        elif not kind[0] & 0x20 and kind.isalpha():  # a critical chunk of a kind unknown here
            kept.append(chunk)
        at += 12 + length
        if kind == b"IEND":
            break
    return b"".join(kept), exif


def _jpeg(body: bytes) -> tuple[bytes, bytes]:
    kept, exif, at = [body[:2]], b"", 2
    while True:
        if body[at] != 0xFF:
            raise struct.error
        marker = body[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        end = at + 2 + struct.unpack_from(">H", body, at + 2)[0]
        if marker == _SCAN:
            return b"".join([*kept, body[at:]]), exif
        if marker == _APP1 and body.startswith(_EXIF, at + 4):
            exif = body[at + 4 + len(_EXIF) : end]
        elif _APP0 <= marker <= _APP15 or marker == _COMMENT:
            if marker in _JPEG_KEPT and end - at - 4 >= _JPEG_KEPT[marker]:
                kept.append(body[at:end])
        else:
            kept.append(body[at:end])
        at = end


def _webp(body: bytes) -> tuple[bytes, bytes]:
    """Makes a file of the pixels alone; a lossy one loses its transparency, as it would anyway."""
    pixels, exif, at = b"", b"", 12
    while at + 8 <= len(body):
        kind, length = struct.unpack_from("<4sI", body, at)
        end = at + 8 + length + length % 2
        if kind in (b"VP8 ", b"VP8L"):
            pixels = pixels or body[at:end]
        elif kind == b"EXIF":
            exif = body[at + 8 : at + 8 + length].removeprefix(_EXIF)
        at = end
    if not pixels:  # none, or an animation
        raise struct.error
    return b"RIFF" + struct.pack("<I", 4 + len(pixels)) + b"WEBP" + pixels, exif
