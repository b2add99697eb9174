"""Counts what a file consists of, where a decoder would go on for as long as the file wants."""

from __future__ import annotations

import re
import struct
from typing import Final

from service.core.images.header import Header
from service.core.images.tiff import MAX_SCANS
from service.errors import InvalidImage, UnsupportedImageFormat

MAX_CHUNKS: Final = 20_000
"""Chunks of a PNG; libpng writes one for each 8 kB of pixels."""
MAX_SEGMENTS: Final = 1000
"""Segments of a JPEG between and behind its scans."""

# Inside of a scan 255 is followed by 0, or by a marker of restart, that has no payload.
_MARKER: Final = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_SCAN, _END = 0xDA, 0xD9


def check_structure(body: bytes, header: Header) -> None:
    """Refuses a file of too many parts. Raises: InvalidImage, UnsupportedImageFormat."""
    if header.format == "JPEG" and header.several_scans:
        if scans(body, header.scan) > MAX_SCANS:
            raise UnsupportedImageFormat(
                f"the JPEG file has more than {MAX_SCANS} scans: save it as a baseline JPEG"
            )
    elif header.format == "PNG":
        _check_chunks(body)


def scans(body: bytes, at: int) -> int:
    """Counts a JPEG's scans from the first on, up to one more than are allowed."""
    found = 0
    for _ in range(MAX_SEGMENTS):
        marker = _MARKER.search(body, at)
        if marker is None or body[marker.start() + 1] == _END:
            return found
        at = marker.end()
        if body[marker.start() + 1] == _SCAN:
            found += 1
            if found > MAX_SCANS:
                return found
        at += max(2, int.from_bytes(body[at : at + 2]))
    return MAX_SCANS + 1


def _check_chunks(body: bytes) -> None:
    at = 8
    for n in range(MAX_CHUNKS):
        if at + 8 > len(body):
            return  # cut off, of which the decoder knows best
        length, kind = struct.unpack_from(">I4s", body, at)
        if (kind == b"IHDR") != (n == 0):
            raise InvalidImage("the PNG file says twice how large it is: save it anew")
        if kind == b"IEND":
            return
        at += 12 + length
    raise UnsupportedImageFormat(
        f"the PNG file has more than {MAX_CHUNKS} chunks: save it anew without its metadata"
    )
