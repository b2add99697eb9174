from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.core.engines.memory import (
    MAX_ADMITTED_BYTES,
    MAX_WHOLE_PIXELS,
    MIN_ADMITTED_BYTES,
    MIN_WHOLE_PIXELS,
    admitted_bytes,
    available_memory_bytes,
    largest_image_bytes,
    whole_pixels,
)

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("memory.max", "1048576", 1048576),
        ("memory.max", "1048576\n", 1048576),
        ("memory/memory.limit_in_bytes", "2097152\n", 2097152),  # cgroup 1
        *(("memory.max", text, MACHINE) for text in ("max", "garbage", str(1 << 62))),
    ],
)
def test_the_limit_of_the_container_counts(
    tmp_path: Path, name: str, text: str, expected: int
) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / name).write_text(text)
    assert available_memory_bytes(tmp_path) == expected


def test_pixels_follow_the_memory_within_bounds() -> None:
    assert whole_pixels(1) == MIN_WHOLE_PIXELS
    assert whole_pixels(1 << 50) == MAX_WHOLE_PIXELS
    gib = 1 << 30
    assert MIN_WHOLE_PIXELS < whole_pixels(8 * gib) < whole_pixels(16 * gib) < MAX_WHOLE_PIXELS


def test_what_is_admitted_follows_the_memory_within_bounds() -> None:
    gib = 1 << 30
    assert admitted_bytes(1) == MIN_ADMITTED_BYTES
    assert 300_000_000 < admitted_bytes(gib) < 500_000_000
    assert admitted_bytes(2 * gib) == admitted_bytes(1 << 50) == MAX_ADMITTED_BYTES


def test_an_image_that_is_alone_may_take_more_but_not_all() -> None:
    gib = 1 << 30
    assert largest_image_bytes(1) == MIN_ADMITTED_BYTES
    assert admitted_bytes(gib) < largest_image_bytes(gib) < gib


_FAULTS = """
import resource, sys
import numpy as np
from service.core.engines.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def faults():
    began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        buffers = [np.full(1_500_000, 7, np.uint8) for _ in range(4)]
        del buffers
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began

faults()
print(faults())
"""


def test_freed_buffers_are_used_again_without_asking_the_system() -> None:
    def faults(word: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", _FAULTS, word], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert faults("keep") * 10 < faults("as it is")
