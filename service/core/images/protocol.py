"""Defines the messages between the server and the processes that decode: numbers, and no objects,
as whoever took over a worker may send anything."""

from __future__ import annotations

import struct
from typing import Final

from service.errors import ImageTooLarge, InvalidImage, UnsupportedImageFormat

READY: Final = b"ready"
"""The first process is there; or what its kernel lacks to confine it."""
WANTED: Final = struct.Struct("<QQ")
"""Bytes of the shared memory for the file, and for its pixels; its descriptors travel along."""
REQUEST: Final = struct.Struct("<QQB")
"""Bytes of the file, which is in the shared memory, the most pixels that it may have, and to one of
how many of them each of its sides is to be reduced."""
REPLY: Final = struct.Struct("<BII")
"""0, height and width before they are reduced; or the place of an error in `ERRORS`, from 1 on, and
its text behind."""
ERRORS: Final = (InvalidImage, UnsupportedImageFormat, ImageTooLarge)
MAX_TEXT: Final = 1000
