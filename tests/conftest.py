"""What every test may use."""

from __future__ import annotations

import os

import pytest

# Before any test imports onnxruntime: a test run reports to nobody (see cli/main.py).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def need(met: bool, reason: str) -> None:
    """Skip the test when the machine lacks something, saying what; fail instead where CI=true.

    On a user's machine a missing tool is no fault of the project. The integration server has
    what the tests need, so there a skip would hide a test that no longer runs.
    """
    if met:
        return
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"CI must have what this test needs: {reason}", pytrace=False)
    pytest.skip(reason)
