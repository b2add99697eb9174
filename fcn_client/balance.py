"""Keeps which of several servers is asked next, and which ones are left alone for a while.

No input or output of its own, so that threads and asyncio can share it.
"""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar
from urllib.parse import urlsplit

from fcn_client.errors import (
    DeadlineExceeded,
    FcnConnectionError,
    FcnError,
    FcnTimeoutError,
    InvalidInput,
    ModelNotReady,
    Overloaded,
    ServerError,
    UnknownModel,
    UnknownVersion,
)
from fcn_client.request import is_grpc

T = TypeVar("T")

PROBE_S: Final = 1.0
"""How long a server that failed may take to say that it is ready again."""
RESOLVE_S: Final = 10.0
"""How long the addresses behind a name are taken to be the same."""
_FIRST_REST_S: Final = 1.0
_MAX_REST_S: Final = 30.0
_LEAST_SHARE_S: Final = 1.0
_MODEL_S: Final = 5.0
"""How long a server without the model is not asked for it: another may be rolled out just now."""
_GONE: Final = frozenset({502, 503})
_ALL: Final = None
_log = logging.getLogger("fcn_client")


@dataclass(eq=False, slots=True)
class Replica(Generic[T]):
    """Represents one of several servers. rests: until when, on the clock, it is left alone, for
    everything (None) or for one model. failures: one after the other."""

    name: str
    transport: T
    outstanding: int = 0
    turn: int = 0
    failures: int = 0
    probed: bool = False
    rests: dict[Hashable, float] = field(default_factory=dict)

    def rests_until_s(self, want: Hashable) -> float:
        return max(self.rests.get(_ALL, -math.inf), self.rests.get(want, -math.inf))


class Balance(Generic[T]):
    """Chooses the fit server with the fewest requests. Threads may share it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.replicas: list[Replica[T]] = []
        self._clock = clock
        self._lock = threading.Lock()
        self._turns = 0

    def replace(self, names: Iterable[str], connect: Callable[[str], T]) -> tuple[Replica[T], ...]:
        """Takes other servers, keeps what it knows of those that stay, and returns the others."""
        with self._lock:
            known = {replica.name: replica for replica in self.replicas}
            self.replicas = [known.pop(n) if n in known else Replica(n, connect(n)) for n in names]
            return tuple(known.values())

    def pick(self, want: Hashable, probe: bool, weight: int = 1) -> tuple[Replica[T], bool]:
        """Returns a server, its request counted, and whether to ask it first if it is ready.

        want: the model and version. probe: False where such a question has just failed.
        """
        with self._lock:
            fit = self._fit(want)
            on_trial = [r for r in fit if r.failures and not r.probed] if probe else []
            soonest_s = min(r.rests_until_s(want) for r in self.replicas)
            pool = (
                on_trial
                or [r for r in fit if not r.failures]
                or [r for r in self.replicas if r.rests_until_s(want) <= soonest_s]
            )
            chosen = min(pool, key=lambda r: (r.outstanding, r.turn))
            self._turns += 1
            chosen.turn = self._turns
            chosen.outstanding += weight
            chosen.probed = chosen.probed or bool(on_trial)
            return chosen, bool(on_trial)

    def share_s(self, want: Hashable, left_s: float, attempt_s: float | None, most: int) -> float:
        """Returns how much of the time that is left one attempt may take: all of it where no other
        server is fit. most: attempts that the policy allows."""
        with self._lock:
            fit = min(len(self._fit(want)), most)
        if fit < 2:
            return left_s
        share_s = max(_LEAST_SHARE_S, left_s / fit) if attempt_s is None else attempt_s
        return min(left_s, share_s)

    def done(
        self, replica: Replica[T], want: Hashable, error: FcnError | None, weight: int = 1
    ) -> None:
        """Takes note of how a request ended, and in `error` whether another server may be asked at
        once."""
        with self._lock:
            replica.outstanding -= weight
            self._judge(replica, want, error)
            if error is not None and (_of_replica(error) or _of_model(error)):
                error.elsewhere = bool(self._fit(want))

    def cancelled(self, replica: Replica[T], weight: int = 1) -> None:
        with self._lock:
            replica.outstanding -= weight

    def probed(self, replica: Replica[T], error: FcnError | None) -> None:
        """Takes note of what a server that had failed said when it was asked if it is ready."""
        with self._lock:
            replica.probed = False
            self._judge(replica, _ALL, error)

    def _fit(self, want: Hashable) -> list[Replica[T]]:
        now = self._clock()
        return [r for r in self.replicas if r.rests_until_s(want) <= now]

    def _judge(self, replica: Replica[T], want: Hashable, error: FcnError | None) -> None:
        now = self._clock()
        if error is None:
            if replica.failures:
                _log.warning("%s answers again", replica.name)
            replica.failures = 0
            replica.rests.clear()
        elif _of_model(error):
            replica.rests[want] = now + _MODEL_S
        elif isinstance(error, Overloaded | DeadlineExceeded):
            # It answers, so it is not on trial; but an answer that costs nothing must not draw all.
            replica.rests[_ALL] = now + min(error.retry_after_s or _FIRST_REST_S, _MAX_REST_S)
        elif _of_replica(error):
            replica.failures += 1
            rest_s = min(_FIRST_REST_S * 2 ** min(replica.failures - 1, 10), _MAX_REST_S)
            replica.rests[_ALL] = now + rest_s
            _log.warning("%s is left alone for %g s: %s", replica.name, rest_s, error)


def addresses(url: str | Sequence[str]) -> list[str]:
    """Reads one address, several with commas between them, or a list. Raises: InvalidInput."""
    given = url.split(",") if isinstance(url, str) else list(url)
    urls = list(dict.fromkeys(one.strip() for one in given))
    if len({is_grpc(one) for one in urls}) != 1:
        raise InvalidInput(
            f"{', '.join(urls) or 'no address'}: give addresses of REST, or of gRPC, not of both"
        )
    return urls


def resolve(url: str) -> list[str]:
    """Returns every IP address behind the host of `url`: of IPv4, or where there is none of IPv6.

    Raises: FcnConnectionError.
    """
    host = urlsplit(url).hostname or ""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise FcnConnectionError(f"cannot find the addresses of {host}: {error}") from error
    by_family = {family: [a[0] for f, *_, a in found if f == family] for family, *_ in found}
    ips = by_family.get(socket.AF_INET) or by_family.get(socket.AF_INET6) or []
    return sorted({str(ip) for ip in ips})


def _of_model(error: FcnError) -> bool:
    return isinstance(error, UnknownModel | UnknownVersion | ModelNotReady)


def _of_replica(error: FcnError) -> bool:
    if isinstance(error, ServerError):
        return error.status in _GONE or isinstance(error, Overloaded | DeadlineExceeded)
    return isinstance(error, FcnConnectionError | FcnTimeoutError)
