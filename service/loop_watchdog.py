"""Notices an event loop that is blocked, which nothing on it can.

One that is blocked for `BLOCKED_S` is told of in the log, with the stack of what blocks it. The
second time within a minute, or after twice as long, the process ends for its supervisor: the rule
of `service.core.models.watchdog` for models. A call that does not let other threads run is not
seen until it does.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

from service.core.models.watchdog import AGAIN_S, TICK_S

BLOCKED_S: Final = 10.0
_log = logging.getLogger("fcn.app")


class LoopWatchdog:
    """Looks at the loop that it is made on, from a thread of its own, once it is started."""

    def __init__(self, leave: Callable[[], None], blocked_s: float = BLOCKED_S) -> None:
        """leave: ends the process."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._leave = leave
        self._blocked_s = blocked_s
        self._turns = self._asked = 0
        self._busy_s = 0.0
        self._told = False
        self._told_s = -math.inf

    def start(self) -> None:
        threading.Thread(target=self._run, name="loop-watchdog", daemon=True).start()

    def look(self, tick_s: float, now_s: float) -> None:
        """Looks once. tick_s: seconds since the last look, as far as they count."""
        if self._turns == self._asked:
            self._busy_s, self._told = 0.0, False
            self._asked += 1
            self._loop.call_soon_threadsafe(self._turn)
            return
        self._busy_s += tick_s
        if self._busy_s > self._blocked_s and not self._told:
            self._told = True
            again, self._told_s = now_s - self._told_s < AGAIN_S, now_s
            stack = traceback.format_stack(sys._current_frames().get(self._thread))
            _log.critical("the event loop is blocked:\n%s", "".join(stack))
        else:
            again = False
        if again or self._busy_s > 2 * self._blocked_s:
            _log.critical("leaving, to be started anew: the event loop does not come back")
            self._leave()

    def _turn(self) -> None:
        self._turns += 1

    def _run(self) -> None:
        looked_s = time.monotonic()
        while not self._loop.is_closed():
            time.sleep(TICK_S)
            now_s = time.monotonic()
            # A process that was stopped for a while must not take that for a loop that hangs.
            try:
                self.look(min(now_s - looked_s, 2 * TICK_S), now_s)
            except RuntimeError:  # it was closed meanwhile
                return
            looked_s = now_s
