"""Limits of each caller: requests and megapixels a second, requests at once; and how fast keys may
be guessed from one address.

Rates are kept by GCRA, which needs one number for each: the moment at which a full bucket would be
owed. A bucket holds what a second brings, or one request where that is less. An image larger than
the bucket is taken when the bucket is full, and paid for afterwards: so one always gets through,
and no more than the rate does over time.

Source: ITU-T I.371, generic cell rate algorithm.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Final, Self

from service.errors import LimitExceeded

MAX_TRACKED: Final = 4096
"""Callers, or addresses, that are remembered; then the one that was quiet for longest goes."""
FREE_GUESSES: Final = 20
"""Wrong keys in a row from one address before it has to wait."""
LONGEST_WAIT_S: Final = 60.0
"""For the next guess. The first wait is a second, and each wrong key doubles it."""
FORGIVEN_S: Final = 600.0
"""An address without a wrong key for so long is as any other again."""
_RETRY_IN_FLIGHT_S: Final = 1.0
"""Told to who has too many requests at once: how long those take is nobody's to say."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Says what one caller may ask for; None is no limit.

    requests_s, megapixels_s: a second. in_flight: requests at once.
    """

    requests_s: float | None = None
    megapixels_s: float | None = None
    in_flight: int | None = None

    @classmethod
    def of(cls, words: Iterable[str]) -> Self:
        """Reads `requests_s=10 megapixels_s=50 in_flight=4`, any of them.

        Raises: ValueError, which repeats no word: it might be a key.
        """
        found: dict[str, float | int] = {}
        for word in words:
            name, _, text = word.partition("=")
            if name not in LIMIT_NAMES or name in found:
                raise ValueError(f"use each of {', '.join(LIMIT_NAMES)} once, with = and a number")
            try:
                value = int(text) if name == "in_flight" else float(text)
            except ValueError:
                value = 0
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is to be a number above 0, a whole one for in_flight")
            found[name] = value
        return cls(**found)  # type: ignore[arg-type]  # in_flight is the int

    def over(self, default: Limits) -> Limits:
        """Returns these, with those of `default` where there is none."""
        own = {n: v for n in LIMIT_NAMES if (v := getattr(self, n)) is not None}
        return replace(default, **own)

    def __str__(self) -> str:
        named = ((name, getattr(self, name)) for name in LIMIT_NAMES)
        return " ".join(
            f"{name}={str(value).removesuffix('.0')}" for name, value in named if value is not None
        )


NO_LIMITS: Final = Limits()
LIMIT_NAMES: Final = tuple(field.name for field in fields(Limits))


class Bucket:
    """Meters one rate. A unit costs 1 / rate seconds; `owed_s` says until when all is paid."""

    __slots__ = ("burst_s", "owed_s", "rate")

    def __init__(self, rate: float, unit: float) -> None:
        """unit: what one at least gets through of, however low the rate."""
        self.rate = rate
        self.burst_s = max(1.0, unit / rate)
        self.owed_s = -math.inf

    def wait_s(self, cost: float, now: float) -> float:
        """Says how long until so much may be taken; 0 when it may be now."""
        needs_s = min(cost / self.rate, self.burst_s)
        wait_s = max(0.0, self.owed_s - now) + needs_s - self.burst_s
        return wait_s if wait_s > 1e-9 else 0.0

    def take(self, cost: float, now: float) -> None:
        self.owed_s = max(self.owed_s, now) + cost / self.rate

    def left(self, now: float) -> int:
        """Counts the whole units that may be taken now."""
        left_s = self.burst_s - max(0.0, self.owed_s - now)
        return max(0, math.floor(left_s * self.rate + 1e-6))


class Usage:
    """Counts what one caller uses of its limits."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self._clock = clock
        self._running = 0
        rates = {"requests": limits.requests_s, "pixels": None}
        if limits.megapixels_s is not None:
            rates["pixels"] = 1e6 * limits.megapixels_s
        self._buckets = {n: Bucket(r, 1.0) for n, r in rates.items() if r is not None}

    def enter(self) -> None:
        """Counts a request, until `leave`. Raises: LimitExceeded, and nothing is counted."""
        at_once = self.limits.in_flight
        if at_once is not None and self._running >= at_once:
            raise LimitExceeded(
                f"this caller may have {at_once} requests at once", _RETRY_IN_FLIGHT_S, "in_flight"
            )
        self._take("requests", 1, f"{self.limits.requests_s or 0:g} requests a second")
        self._running += 1

    def leave(self) -> None:
        self._running -= 1

    def take_pixels(self, pixels: int, *, judged: bool) -> None:
        """Counts an image's. judged: False for the further images of a request that was let in,
        which would else fail when half of it is done. Raises: LimitExceeded."""
        words = f"{self.limits.megapixels_s or 0:g} megapixels a second"
        self._take("pixels", pixels, words, judged=judged)

    def headers(self) -> list[tuple[str, str]]:
        """Prints the policy and what is left of it.

        Source: draft-ietf-httpapi-ratelimit-headers-10, RateLimit header fields for HTTP.
        """
        now, policies, left = self._clock(), [], []
        for name, bucket in self._buckets.items():
            unit = "" if name == "requests" else f';qu="{name}"'
            quota, window_s = round(bucket.rate * bucket.burst_s), math.ceil(bucket.burst_s)
            policies.append(f'"{name}";q={quota}{unit};w={window_s}')
            full_s = math.ceil(max(0.0, bucket.owed_s - now))
            left.append(f'"{name}";r={bucket.left(now)};t={full_s}')
        if (at_once := self.limits.in_flight) is not None:
            policies.append(f'"in_flight";q={at_once};qu="concurrent-requests"')
            left.append(f'"in_flight";r={max(0, at_once - self._running)}')
        return [("RateLimit-Policy", ", ".join(policies)), ("RateLimit", ", ".join(left))]

    def _take(self, name: str, cost: float, allowed: str, *, judged: bool = True) -> None:
        if (bucket := self._buckets.get(name)) is None:
            return
        now = self._clock()
        if judged and (wait_s := bucket.wait_s(cost, now)):
            raise LimitExceeded(f"this caller may ask for {allowed}", wait_s, name)
        bucket.take(cost, now)


class Limiter:
    """Finds the usage of each caller, by name, or, of those without one, by address."""

    def __init__(self, default: Limits, clock: Callable[[], float]) -> None:
        """default: in force wherever a caller has no limit of its own."""
        self._default = default
        self._clock = clock
        self._usages: OrderedDict[str, Usage] = OrderedDict()

    def usage(self, who: str, own: Limits) -> Usage | None:
        """Returns None for a caller without any limit."""
        limits = own.over(self._default)
        if limits == NO_LIMITS:
            return None
        usage = self._usages.get(who)
        if usage is None or usage.limits != limits:  # the file was changed: its count begins again
            usage = self._usages[who] = Usage(limits, self._clock)
            if len(self._usages) > MAX_TRACKED:
                self._usages.popitem(last=False)
        self._usages.move_to_end(who)
        return usage


class Guesses:
    """Slows addresses that send wrong keys."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # By address: how many wrong keys, the last of them when, and until when it has to wait.
        self._wrong: OrderedDict[str, tuple[int, float, float]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Says how long the address has to wait before its next guess."""
        if not self._wrong:
            return 0.0
        _, _, until_s = self._wrong.get(address, (0, 0.0, 0.0))
        return max(0.0, until_s - self._clock())

    def wrong(self, address: str) -> None:
        """Counts a wrong key."""
        now = self._clock()
        count, last_s, _ = self._wrong.pop(address, (0, now, 0.0))
        count = 1 if now - last_s > FORGIVEN_S else count + 1
        late = count - FREE_GUESSES
        wait_s = min(LONGEST_WAIT_S, 2.0 ** min(late - 1, 10)) if late > 0 else 0.0
        self._wrong[address] = count, now, now + wait_s
        if len(self._wrong) > MAX_TRACKED:
            self._wrong.popitem(last=False)
