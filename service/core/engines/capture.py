"""Captures of CUDA graphs, apart from everything else that touches a GPU.

While a thread captures, CUDA forbids the others of the process to allocate or to wait for a device:
their calls fail, and the capture with them (microsoft/onnxruntime#18806).
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager


class Captures:
    """One capture, or any number of other uses."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._others = 0
        self._waiting = 0
        self._capturing = False

    @contextmanager
    def none(self) -> Generator[None, None, None]:
        """Around every other use of a GPU."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._capturing or self._waiting))
            self._others += 1
        try:
            yield
        finally:
            with self._changed:
                self._others -= 1
                self._changed.notify_all()

    @contextmanager
    def one(self) -> Generator[None, None, None]:
        """Around a capture, which goes before whoever comes later."""
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: not (self._capturing or self._others))
            self._waiting -= 1
            self._capturing = True
        try:
            yield
        finally:
            with self._changed:
                self._capturing = False
                self._changed.notify_all()


CAPTURES = Captures()
"""Those of this process."""
