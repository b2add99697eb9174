"""Decides when to ask again, and when to give up."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fcn_client.errors import FcnError, FcnTimeoutError

# The server's own "deadline exceeded" says more than a timeout here: it gets this long to arrive.
GRACE_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Says how often and when to ask again.

    The n-th wait is drawn from 0 to `first_wait_s` * 2^n, `max_wait_s` at most, so that clients
    which were refused together do not come back together. A server's Retry-After is waited for in
    full, with such a draw, as long as itself at most, on top. `max_attempts=1` never retries.

    With several servers another one is asked at once, without a wait. attempt_s: after how many
    seconds one of them is given up for another; by default after an equal share of the time that is
    left, 1 s at least.
    """

    max_attempts: int = 6
    first_wait_s: float = 0.2
    max_wait_s: float = 10.0
    attempt_s: float | None = None

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.first_wait_s < 0 or self.max_wait_s < 0:
            raise ValueError(f"{self}: want max_attempts of 1 or more and waits of 0 s or more")
        if self.attempt_s is not None and not self.attempt_s > 0:
            raise ValueError(f"{self}: want attempt_s above 0, or None")


class RetryBudget:
    """Keeps what is left of one request's time and attempts."""

    def __init__(
        self,
        policy: RetryPolicy,
        total_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._draw = draw
        self._ends = clock() + total_s
        self.attempts = 0

    def begin(self) -> float:
        """Counts an attempt and returns the seconds it may take. Raises: FcnTimeoutError."""
        left_s = self._ends - self._clock()
        if left_s <= 0:
            raise FcnTimeoutError("the time allowed is over: allow more than that")
        self.attempts += 1
        return left_s

    def refund(self) -> None:
        """Takes back the last attempt: another request spoiled it."""
        self.attempts -= 1

    def wait_s(self, error: FcnError) -> float:
        """Returns how long to wait before asking again. Raises: `error` where that is in vain."""
        error.attempts = self.attempts
        may_help = error.retryable or error.elsewhere
        if not may_help or self.attempts >= self._policy.max_attempts:
            raise error
        most_s = min(self._policy.first_wait_s * 2 ** (self.attempts - 1), self._policy.max_wait_s)
        asked_s = error.retry_after_s
        if error.elsewhere:
            wait_s = 0.0
        elif asked_s is None:
            wait_s = self._draw(0.0, most_s)
        else:
            wait_s = asked_s + self._draw(0.0, min(most_s, asked_s))
        if self._clock() + wait_s >= self._ends:
            raise error
        return wait_s
