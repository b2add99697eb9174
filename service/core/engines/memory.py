"""How much memory this process may use, what of it pictures may have, what goes back."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

_CGROUP = Path("/sys/fs/cgroup")

BYTES_PER_PIXEL: Final = 3000
"""What a pixel of a whole picture may take. An inference of FCN-8s VGG16 holds about 700 bytes per
pixel at its widest layer, one of MobileNetV1 about 200 (bench/LOG.md); two may run at once, and
uploads, answers and other models need their share."""
FEWEST, MOST = 1024 * 1024, 16 * 1024 * 1024
"""Bounds of `whole_pixels`: smaller parts would be mostly overlap, larger ones gain nothing."""

RESERVED_BYTES: Final = 700_000_000
"""Besides the pictures between admission and answer: the process, two inferences of FCN-8s
MobileNetV1 on a megapixel each, uploads. A container that 24 callers sent pictures of 12 megapixels
took 744 MB with 48 million pixels admitted and 1155 MB with 160 million; one of 1 GiB takes 909."""
BYTES_PER_ADMITTED_PIXEL: Final = 4
"""RGB, and a label map or what is rendered of it."""
FEWEST_ADMITTED, MOST_ADMITTED = 10_000_000, 160_000_000
"""Pixels. Fewer would turn small pictures away that take little; more would only wait."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""Of glibc's malloc.h."""
_KEPT_BUFFER_BYTES: Final = 8 * 1024 * 1024
"""A larger buffer, such as the pixels of a picture above 2.7 megapixels, goes back when freed."""
_KEPT_BYTES: Final = 64 * 1024 * 1024


def available_memory_bytes(cgroup: Path = _CGROUP) -> int:
    """The container's limit (cgroup v2 or v1), at most the machine's memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return min(total, int((cgroup / name).read_text()))
        except (OSError, ValueError):  # absent, or "max": no limit
            continue
    return total


def whole_pixels(memory_bytes: int) -> int:
    """Height times width up to which a picture is run in one piece."""
    return max(FEWEST, min(MOST, memory_bytes // BYTES_PER_PIXEL))


def admitted_pixels(memory_bytes: int) -> int:
    """Of all pictures between admission and answer; one always fits, whatever its size."""
    room = (memory_bytes - RESERVED_BYTES) // BYTES_PER_ADMITTED_PIXEL
    return max(FEWEST_ADMITTED, min(MOST_ADMITTED, room))


def give_back() -> None:
    """Returns to the system what was freed, and glibc keeps. Up to 0.2 s: not on the event loop.

    Eight replacements of a 24 MB model under load took a process from 185 to 462 MB without it, and
    unloading left 444 MB. With it 24 left 214 MB, and unloading 148 MB (AMD EPYC, 2 cores).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def keep_freed_memory() -> bool:
    """Tells glibc to keep what pictures' buffers leave instead of returning it to the system, which
    would have to hand out and clear the same pages again for the next picture: 270 page faults and
    a quarter of what the server itself needs for a request that is alone (bench/LOG.md).

    For the whole process, so only whoever owns it calls this. False where there is no glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # Both, for setting one stops glibc from adapting the other.
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEPT_BUFFER_BYTES)) and bool(
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    )
