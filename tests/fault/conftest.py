"""A server whose answers take as long as a test wants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.drawing import png
from tests.serving import write_slow_model

INFLIGHT = "fcn_inflight_requests"
PATIENT = {"max_wait_ms": 120_000, "deadline_ms": 120_000}
"""For a server that is to take on all it has room for, however slow the machine is by now."""


@pytest.fixture(scope="session")
def slow_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository: Path = tmp_path_factory.mktemp("slow")
    write_slow_model(repository)
    return repository


def lasting(red: int) -> bytes:
    """An image that keeps the slow model busy: about 3 ms for each step of `red`, 0 to 255."""
    rgb = np.zeros((8, 8, 3), np.uint8)
    rgb[0, 0, 0] = red
    return png(rgb)
