"""An event loop that is blocked: what is said of it, and when the process ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from service.core.models.watchdog import AGAIN_S, TICK_S
from service.loop_watchdog import BLOCKED_S, LoopWatchdog


class Watched:
    """A loop in virtual time, that turns when a test says so."""

    def __init__(self) -> None:
        self.left = 0
        self.now_s = 0.0
        self.dog = LoopWatchdog(self._leave)

    def blocked(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.now_s += TICK_S
            self.dog.look(TICK_S, self.now_s)

    async def turns(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK_S)):
            await asyncio.sleep(0)
            self.blocked(TICK_S)
        await asyncio.sleep(0)

    def _leave(self) -> None:
        self.left += 1


@pytest.mark.parametrize(("between_s", "left"), [(AGAIN_S / 2, 1), (2 * AGAIN_S, 0)])
async def test_the_second_time_within_a_minute_the_process_ends(
    caplog: pytest.LogCaptureFixture, between_s: float, left: int
) -> None:
    watched = Watched()
    await watched.turns(5)
    watched.blocked(BLOCKED_S)
    assert caplog.messages == []
    watched.blocked(2 * TICK_S)
    await watched.turns(between_s)
    (told,) = caplog.messages
    assert "the event loop is blocked" in told and "watched.blocked" in told, "the stack"
    assert watched.left == 0
    watched.blocked(BLOCKED_S + 2 * TICK_S)
    assert watched.left == left
    assert len([line for line in caplog.messages if "blocked" in line]) == 2


def test_one_that_does_not_come_back_ends_the_process() -> None:
    code = (
        "import asyncio, os, time\n"
        "from service.loop_watchdog import LoopWatchdog\n"
        "async def main():\n"
        "    LoopWatchdog(lambda: os._exit(7), 0.1).start()\n"
        "    time.sleep(50)  # what blocks\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 7
    assert "the event loop is blocked" in done.stderr
