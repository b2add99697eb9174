"""Which way up a picture is, from its EXIF block, without decoding the rest of the block.

It knows well-formed blocks only, where its answer is that of Pillow's `getexif`; of any other it
says nothing, and Pillow is asked.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# Source: TIFF 6.0, section 2, and its supplement 1 (13: IFD).
_BYTES_OF_TYPE: Final = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4)
_SHORT, _RATIONAL = 3, 5
_ORIENTATION: Final = 0x0112
_ONE_OF: Final[Mapping[int, int]] = MappingProxyType(
    # The other two Pillow reads as it opens a JPEG, and on some types it fails.
    {_ORIENTATION: _SHORT, 0x011A: _RATIONAL, 0x0128: _SHORT}
)
_MAX_ENTRIES: Final = 256


def orientation(block: bytes) -> int | None:
    """The tag of the first directory; 0 where it has none, None where only Pillow can tell.

    block: a TIFF header and what follows, hostile bytes included.
    """
    head = block[:4]
    if head not in (b"II*\x00", b"MM\x00*") or len(block) < 8:
        return None
    order = "<" if head[:1] == b"I" else ">"
    (at,) = struct.unpack_from(order + "I", block, 4)
    if at + 2 > len(block):
        return None
    (entries,) = struct.unpack_from(order + "H", block, at)
    end = at + 2 + 12 * entries
    if entries > _MAX_ENTRIES or end + 4 > len(block):
        return None
    found, outside = 0, 0
    seen: set[int] = set()
    for tag, kind, count, where in struct.iter_unpack(order + "HHII", block[at + 2 : end]):
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
            found = where & 0xFFFF if order == "<" else where >> 16
    # A zero that is written is not the same as none: Pillow then looks at no XMP.
    return None if _ORIENTATION in seen and found == 0 else found
