"""Bounds what all HTTP connections together hold and how long each may keep the server waiting.

What one request may be is bounded by `service.framing`, its body by `service.api.uploads`. Here is
the rest: how many connections, silent ones, heads that do not come, answers that nobody reads.
Every second all of them are looked at, which costs less than a timer for each.
"""

from __future__ import annotations

import asyncio
import heapq
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Final, Protocol

from service.config import ApiConfig
from service.telemetry import Ending, Telemetry

DESCRIPTORS_SHARE: Final = 2
"""One of so many descriptors may be an HTTP connection. gRPC, models, keys and the loop have the
others: a server that can open no more can't read its key file, either."""
_LOOK_EVERY_S: Final = 1.0
_ROOM_SHARE: Final = 64
"""Room is made for a 64th of all at a time: looking for the idlest takes half a millisecond, and
somebody may open a thousand a second."""


@dataclass(frozen=True)
class Bounds:
    """Says how much one caller, and all of them, may hold and wait.

    max_connections: far more than requests that could wait for an answer (FCN_MAX_INFLIGHT,
    FCN_MAX_UPLOADS); one that sends ahead holds up to 100 kB.
    max_unread_bytes: of answers that wait for their readers, over all connections; a single answer
    always fits.
    idle_s: longer than the idle time of common load balancers (60 s): the side that reuses a
    connection must not be the one that closes it last.
    head_s: from the first byte of a request's head to its last. Source: Envoy's advice for the edge
    is 10 s, Apache's mod_reqtimeout has 20 s.
    body_s: for a body; FCN_UPLOAD_TIMEOUT_S and a little, so that its 408 comes first.
    rest_of_body_s: for what is left of a body, and thrown away, when it was answered already.
    reading_s, min_read_bytes: who takes less than so much of an answer in that time has stopped
    reading. It is 9 kbit/s; systems and networks hand on tens of kilobytes at a time.
    """

    max_connections: int = 1024
    max_unread_bytes: int = 128 * 1024 * 1024
    idle_s: float = 65.0
    head_s: float = 10.0
    body_s: float = ApiConfig.upload_timeout_s + 5.0
    rest_of_body_s: float = 10.0
    reading_s: float = 15.0
    min_read_bytes: int = 16 * 1024

    @classmethod
    def of(cls, config: ApiConfig) -> Bounds:
        """Makes those of a server, by its settings and this process's limit of descriptors."""
        return cls(
            max_connections=min(cls.max_connections, _descriptors() // DESCRIPTORS_SHARE),
            body_s=config.upload_timeout_s + 5.0,
        )


class Beginner(Protocol):
    """Has a request that waits for its turn.

    turn: counts up over all connections; 0 while it has begun no request. ahead: its next request
    came before the last was answered.
    """

    ahead: bool
    turn: int

    def begin(self) -> None:
        """Runs the request whose turn it is; nothing if the connection has ended meanwhile."""


class Connection(Beginner, Protocol):
    """Says of one connection what the bounds are about."""

    address: str

    @property
    def unread_bytes(self) -> int: ...

    def moved_s(self) -> float | None:
        """Returns when its caller last did something; None while the server owes the next step."""

    def overdue(self, now_s: float) -> Ending | None:
        """Says why it should end now, if it should."""

    def end(self, why: Ending) -> None:
        """Closes it."""


class Turns:
    """Has one request begin in each round of the event loop, so that those who send many over many
    connections keep others waiting for one request, not for one of each connection.

    Requests that were sent ahead of an answer come last. Of equals, who has had a turn longest ago
    comes first, and a newcomer before all who have had one.
    """

    def __init__(self) -> None:
        self._given = 0
        self._waiting: list[tuple[bool, int, int, Beginner]] = []
        self._asked = 0
        self._taken = False

    def ask(self, connection: Beginner) -> None:
        """Has the connection begin its request: at once, unless another has in this round."""
        if self._taken:
            self._asked += 1
            place = connection.ahead, connection.turn, self._asked, connection
            heapq.heappush(self._waiting, place)
        else:
            self._give(connection)

    def _give(self, connection: Beginner) -> None:
        self._taken = True
        self._given += 1
        connection.turn = self._given
        asyncio.get_running_loop().call_soon(self._next)
        connection.begin()

    def _next(self) -> None:
        self._taken = False
        if self._waiting:
            self._give(heapq.heappop(self._waiting)[-1])


class Connections:
    """Counts all open connections, and ends those that are over a bound."""

    def __init__(self, telemetry: Telemetry, bounds: Bounds) -> None:
        self._telemetry = telemetry
        self.bounds = bounds
        self._open: set[Connection] = set()
        self._of_address: Counter[str] = Counter()
        self._unread: set[Connection] = set()
        self.turns = Turns()
        self.stopping = False  # whether each ends with its next answer
        self._looking: asyncio.TimerHandle | None = None

    def add(self, connection: Connection) -> bool:
        """Takes a new one in; False where there is no room and nobody to make some."""
        if len(self._open) >= self.bounds.max_connections and not self._make_room():
            return False
        self._open.add(connection)
        self._of_address[connection.address] += 1
        self._telemetry.connections(len(self._open))
        if self._looking is None:
            self._look_later()
        return True

    def remove(self, connection: Connection, why: Ending) -> None:
        """Forgets one that has ended."""
        self._telemetry.connection_closed(why)
        self._unread.discard(connection)
        if connection not in self._open:
            return
        self._open.remove(connection)
        self._of_address[connection.address] -= 1
        if not self._of_address[connection.address]:
            del self._of_address[connection.address]
        self._telemetry.connections(len(self._open))

    def unread(self, connection: Connection) -> None:
        """Counts an answer that its reader does not keep up with, until `read`."""
        self._unread.add(connection)
        held = {c: c.unread_bytes for c in self._unread}
        total = sum(held.values())
        # Those who have not read for the longest go first, so not those who keep reading.
        slowest = sorted(held, key=lambda c: c.moved_s() or 0.0)
        for other in slowest[:-1]:
            if total <= self.bounds.max_unread_bytes:
                return
            total -= held[other]
            other.end("unread")

    def read(self, connection: Connection) -> None:
        self._unread.discard(connection)

    def _make_room(self) -> bool:
        """Ends some that wait for their callers: of the address that has most, the idlest."""
        waiting = [(c, moved) for c in self._open if (moved := c.moved_s()) is not None]
        count = max(1, self.bounds.max_connections // _ROOM_SHARE)
        first = heapq.nlargest(
            count, waiting, lambda item: (self._of_address[item[0].address], -item[1])
        )
        for connection, _ in first:
            connection.end("full")
        return bool(first)

    def _look_later(self) -> None:
        self._looking = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        self._looking = None
        now_s = asyncio.get_running_loop().time()
        for connection in list(self._open):
            if why := connection.overdue(now_s):
                connection.end(why)
        if self._open:
            self._look_later()


def _descriptors() -> int:
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
