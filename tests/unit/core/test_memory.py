from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.core.memory import FEWEST, MOST, available_memory_bytes, whole_pixels

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize("text", ["1048576", "1048576\n"])
def test_the_limit_of_cgroup_2_counts(tmp_path: Path, text: str) -> None:
    (tmp_path / "memory.max").write_text(text)
    assert available_memory_bytes(tmp_path) == 1048576


def test_the_limit_of_cgroup_1_counts(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("2097152\n")
    assert available_memory_bytes(tmp_path) == 2097152


@pytest.mark.parametrize("text", ["max", "garbage", str(1 << 62)])
def test_without_a_limit_it_is_the_machine(tmp_path: Path, text: str) -> None:
    (tmp_path / "memory.max").write_text(text)
    assert available_memory_bytes(tmp_path) == MACHINE


def test_pixels_follow_the_memory_within_bounds() -> None:
    assert whole_pixels(1) == FEWEST
    assert whole_pixels(1 << 50) == MOST
    gib = 1 << 30
    assert FEWEST < whole_pixels(8 * gib) < whole_pixels(16 * gib) < MOST
