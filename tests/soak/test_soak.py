"""Soaks for some seconds: `make soak` does it for an hour."""

from __future__ import annotations

import numpy as np

from tests.soak.__main__ import _judged, soak
from tests.tiny_models import expected_label_map


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
