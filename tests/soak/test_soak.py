"""Soaks for some seconds: `make soak` does it for an hour."""

from __future__ import annotations

import mmap
import os
import tempfile

import numpy as np

from tests.soak.__main__ import _judged, sample, soak
from tests.tiny_models import expected_label_map
from tests.waiting import in_own_process

MIB = 1 << 20


def test_mixed_traffic_is_answered_right() -> None:
    found = soak(0.08, seed=1)
    # So short a run says nothing of what is held.
    assert [fault for fault in found["faults"] if "grew" not in fault] == []
    assert all(found["requests"][name]["right"] for name in ("REST", "gRPC", "OIP", "reloads"))


def test_a_wrong_answer_and_a_500_are_faults() -> None:
    rgb = np.zeros((2, 2, 3), np.uint8)
    right = expected_label_map(rgb)
    assert _judged(200, lambda: right, rgb) == "right"
    assert _judged(200, lambda: right + 1, rgb) == "WRONG"
    assert _judged(500, lambda: right, rgb) == "BAD 500"


def _grown_mib() -> tuple[float, float]:
    """Measures what a file of 64 MiB that is mapped and read adds, and then as much of our own."""
    held = [sample(os.getpid())["own_kib"]]
    with tempfile.TemporaryFile() as file:
        for _ in range(64):
            file.write(os.urandom(MIB))
        file.flush()
        with mmap.mmap(file.fileno(), 64 * MIB, prot=mmap.PROT_READ) as mapped:
            read = sum(mapped[:: mmap.PAGESIZE])
            held.append(sample(os.getpid())["own_kib"])
    own = np.full(64 * MIB, read % 256, np.uint8)
    held.append(sample(os.getpid())["own_kib"])
    assert own[-1] == read % 256
    return (held[1] - held[0]) / 1024, (held[2] - held[1]) / 1024


def test_pages_of_files_are_not_memory_that_the_server_holds() -> None:
    of_file, own = in_own_process(_grown_mib)
    assert of_file < 32 < own
