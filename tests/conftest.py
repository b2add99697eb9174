"""Every test may use these; and the tests are shared out among processes."""

from __future__ import annotations

import os
from typing import Any

import pytest

# Before any test imports onnxruntime: a test run reports to nobody (see cli/main.py).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# Before any test imports torch: with as many test processes as cores, a second thread in each
# only waits for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ALONE = (
    "tests/fault/test_flood.py",
    "tests/unit/bench/test_load.py",
)
"""Files that measure: they come last, and nothing else runs meanwhile."""
ONE_AFTER_ANOTHER = ("tests/fault/", "tests/browser/", "tests/soak/")
"""Folders that load a server or a browser: two of their files never run at the same time."""
LONG = ("tests/e2e/", "tests/contract/test_wheels.py")
"""The longest begin next, so that no process is left with one at the end."""


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def turn(item: pytest.Item) -> int:
        if item.nodeid.startswith(ALONE):
            return 3
        if item.nodeid.startswith(ONE_AFTER_ANOTHER):
            return 0
        return 1 if item.nodeid.startswith(LONG) else 2

    items.sort(key=turn)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Share the tests out by file; ALONE and ONE_AFTER_ANOTHER count as a file each."""
    from tests.scheduler import ByFile

    config.option.loadscopereorder = False
    return ByFile(config, log, ALONE, ONE_AFTER_ANOTHER)
