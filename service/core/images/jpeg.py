"""Plain JPEG files -> uint8 RGB, by libjpeg-turbo without Pillow around it.

The same pixels as Pillow's, which has the same library inside; what is saved is Pillow's Python
and its copy from four bytes a pixel to three. Plain is what nearly every file is: Huffman-coded,
8 bits, grey or three components, upright, segment after segment without a gap. Of any other file,
and of one in which libjpeg finds so much as a warning, this module says nothing, and Pillow
decides: so what is accepted, and what is said of what is not, is Pillow's in every case.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import simplejpeg

from service.core.images import exif

# A file of more segments before its pixels takes Pillow's way.
_MAX_SEGMENTS: Final = 256
# Source: ITU-T T.81, table B.1. Baseline, extended and progressive frames of Huffman codes.
_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2})
_SCAN: Final = 0xDA
_TABLES: Final = frozenset({0xC4, 0xDB, 0xDD, 0xFE})  # DHT, DQT, DRI, and comments
_APP0, _APP1, _APP2, _APP13, _APP14 = 0xE0, 0xE1, 0xE2, 0xED, 0xEE
# Shorter ones Pillow refuses, or libjpeg does not take for what they say they are.
_SHORTEST: Final = {(_APP0, b"JFIF"): 14, (_APP2, b"ICC_"): 14, (_APP14, b"Adob"): 12}
# Several pictures in one file, and Photoshop's list of resources: Pillow reads on in them, and
# refuses some.
_PILLOWS: Final = frozenset({(_APP2, b"MPF\x00"), (_APP13, b"Phot")})
_EXIF: Final = b"Exif\x00\x00"
_XMP: Final = b"http://ns.adobe.com/xap/1.0/\x00"
_COLORS: Final = frozenset({"Gray", "YCbCr", "RGB"})


def decode(body: bytes, *, max_pixels: int) -> npt.NDArray[np.uint8] | None:
    """uint8 RGB [H,W,3], C-contiguous and read-only; None: ask Pillow.

    CPU-bound, and the interpreter is free meanwhile.
    """
    size = _plain_size(body)
    if size is None or size[0] * size[1] > max_pixels:
        return None
    try:
        # libjpeg's own reading of the header, by which it then makes the array: nothing that
        # passed as small above can turn out large.
        height, width, color, _ = simplejpeg.decode_jpeg_header(body)
        if (height, width) != size or color not in _COLORS:
            return None
        rgb: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(body, "RGB", strict=True)
    except Exception:  # of libjpeg's complaints, all are ValueError so far
        return None
    rgb.flags.writeable = False
    return rgb


def _plain_size(body: bytes) -> tuple[int, int] | None:
    """(height, width) of an upright plain JPEG; None of any other file."""
    at = 2
    size: tuple[int, int] | None = None
    block: bytes | None = None
    xmp_turns = False
    for _ in range(_MAX_SEGMENTS):
        if at + 4 > len(body) or body[at] != 0xFF:
            return None
        marker = body[at + 1]
        start, end = at + 4, at + 2 + int.from_bytes(body[at + 2 : at + 4])
        if end < start or end > len(body):
            return None
        if marker == _SCAN:
            return size if size is not None and _is_upright(block, xmp_turns) else None
        if marker in _FRAMES:
            if size is not None:
                return None
            size = _frame_size(body, start, end)
            if size is None:
                return None
        elif _APP0 <= marker <= 0xEF:
            kind = (marker, body[start : start + 4])
            if kind in _PILLOWS or end - start < _SHORTEST.get(kind, 0):
                return None
            if marker == _APP1 and body.startswith(_EXIF, start):
                if block is not None:
                    return None
                block = body[start + len(_EXIF) : end]
            elif marker == _APP1 and body.startswith(_XMP, start):
                xmp_turns = xmp_turns or body.find(b"tiff:Orientation", start, end) >= 0
        elif marker not in _TABLES:
            return None
        at = end
    return None


def _frame_size(body: bytes, start: int, end: int) -> tuple[int, int] | None:
    """(height, width) of a frame of 8 bits and one component or three."""
    if end - start < 6 or body[start] != 8 or body[start + 5] not in (1, 3):
        return None
    if end - start != 6 + 3 * body[start + 5]:
        return None
    height = int.from_bytes(body[start + 1 : start + 3])
    width = int.from_bytes(body[start + 3 : start + 5])
    return (height, width) if height and width else None


def _is_upright(block: bytes | None, xmp_turns: bool) -> bool:
    """For certain. Pillow looks at XMP only where EXIF has no orientation."""
    orientation = 0 if block is None else exif.orientation(block)
    return orientation == 1 or (orientation == 0 and not xmp_turns)
