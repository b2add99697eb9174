"""Measures the memory this process may use, and divides it between images and the rest."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

_CGROUP = Path("/sys/fs/cgroup")

BYTES_PER_PIXEL: Final = 3000
"""Bytes that a pixel of a whole image may take. An inference of FCN-8s VGG16 holds about 700 bytes
per pixel at its widest layer, one of MobileNetV1 about 200 (bench/LOG.md); two may run at once, and
uploads, answers and other models need their share."""
MIN_WHOLE_PIXELS, MAX_WHOLE_PIXELS = 1024 * 1024, 16 * 1024 * 1024
"""Bounds of `whole_pixels`: smaller parts would be mostly overlap, larger ones gain nothing."""

RESERVED_BYTES: Final = 700_000_000
"""Bytes besides the images between admission and answer: the process, two inferences of FCN-8s
MobileNetV1 on a megapixel each, uploads (docs/operations.md has what containers took)."""
RESERVED_ALONE_BYTES: Final = 450_000_000
"""Bytes besides an image that is alone: the process, and one inference on a megapixel."""
BYTES_PER_ADMITTED_PIXEL: Final = 4
"""Bytes for RGB, and a label map or what is rendered of it."""
MIN_ADMITTED_BYTES, MAX_ADMITTED_BYTES = 40_000_000, 1_000_000_000
"""Fewer would turn small images away that take little; more would only wait."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""Numbers from glibc's malloc.h."""
_KEPT_BUFFER_BYTES: Final = 8 * 1024 * 1024
"""A larger buffer, such as the pixels of an image above 2.7 megapixels, goes back when freed."""
_KEPT_BYTES: Final = 64 * 1024 * 1024


def available_memory_bytes(cgroup: Path = _CGROUP) -> int:
    """Reads the container's limit (cgroup v2 or v1), at most the machine's memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return min(total, int((cgroup / name).read_text()))
        except (OSError, ValueError):  # absent, or "max": no limit
            continue
    return total


def whole_pixels(memory_bytes: int) -> int:
    """Returns the height times width up to which an image is run in one piece."""
    return max(MIN_WHOLE_PIXELS, min(MAX_WHOLE_PIXELS, memory_bytes // BYTES_PER_PIXEL))


def admitted_bytes(memory_bytes: int, pixels: int | None = None) -> int:
    """Returns the bytes of all images between admission and answer; one image always fits.

    pixels: as many as are wished for, whatever the memory.
    """
    if pixels is not None:
        return BYTES_PER_ADMITTED_PIXEL * pixels
    return max(MIN_ADMITTED_BYTES, min(MAX_ADMITTED_BYTES, memory_bytes - RESERVED_BYTES))


def largest_image_bytes(memory_bytes: int) -> int:
    """Returns the bytes that the decoding of one image may take."""
    return max(MIN_ADMITTED_BYTES, memory_bytes - RESERVED_ALONE_BYTES)


def trim_heap() -> None:
    """Returns freed pages to the system (`malloc_trim`). Up to 0.2 s: not on the event loop.

    Eight replacements of a 24 MB model under load took a process from 185 to 462 MB without it, and
    unloading left 444 MB. With it 24 left 214 MB, and unloading 148 MB (AMD EPYC, 2 cores).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def keep_freed_memory() -> bool:
    """Tells glibc to keep what images' buffers leave instead of returning it to the system, which
    would have to hand out and clear the same pages again for the next image: 270 page faults and
    a quarter of what the server itself needs for a request that is alone (bench/LOG.md).

    It counts for the whole process, so only whoever owns it calls this. False without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # Both, for setting one stops glibc from adapting the other.
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEPT_BUFFER_BYTES)) and bool(
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    )
