"""Speaks HTTP/1.1 for `bench.load`, as cheaply as Python can: it runs on the cores it measures.

It has an event loop of its own and a socket for each request under way, without tasks, futures or
timeouts: with asyncio's, even on uvloop, a request cost twice as much (bench/LOG.md). A library
parses only what comes in.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httptools

NO_ANSWER = 0
"""The status of a request whose connection broke or whose client hung up."""
_RETRY_AFTER, _SERVER_TIMING = len(b"retry-after"), len(b"server-timing")
_READ_BYTES = 1 << 16
_TICK_S = 5e-4
"""Half of a millisecond, in which the poll counts."""


class Answer(NamedTuple):
    """Says what became of a request, in seconds since the start of the load.

    `done_s`: when its last byte came, or its client hung up. `retry_after`: the reply said when to
    come back. `timing`: its Server-Timing header, or nothing.
    """

    due_s: float
    sent_s: float
    done_s: float
    status: int
    retry_after: bool = False
    timing: bytes = b""

    @property
    def latency_s(self) -> float:
        return self.done_s - self.due_s


@dataclass(slots=True, eq=False)
class PendingRequest:
    """Holds a request under way, or over: then `done` is None. `again`: it was sent twice."""

    due_s: float
    sent_s: float
    done: Callable[[Answer], None] | None
    connection: Connection | None = None
    again: bool = False


class Connection:
    """Sends one request at a time over a kept connection, which is opened for the first."""

    def __init__(self, client: Client, message: bytes, asked: PendingRequest) -> None:
        self.open = True
        self.used = False
        self._client = client
        self._parser = httptools.HttpResponseParser(self)
        self._feed = self._parser.feed_data
        family, address = client.address
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._recv, self._send = self._socket.recv, self._socket.send
        self.descriptor = self._socket.fileno()
        self._asked: PendingRequest | None = asked
        asked.connection = self
        self._retry_after, self._timing = False, b""
        self._unsent: memoryview | None = memoryview(message)
        self._socket.connect_ex(address)  # how it ends, the poll says
        client.poll.register(self.descriptor, select.EPOLLIN | select.EPOLLOUT)
        client.connections[self.descriptor] = self

    def send(self, message: bytes, asked: PendingRequest) -> None:
        self._asked, asked.connection = asked, self
        self._retry_after, self._timing = False, b""
        if self._unsent is not None:  # answered before all of the last one was taken
            self._unsent = memoryview(bytes(self._unsent) + message)
            return
        try:
            sent = self._send(message)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lost()
            return
        if sent < len(message):
            self._unsent = memoryview(message)[sent:]
            self._client.poll.modify(self.descriptor, select.EPOLLIN | select.EPOLLOUT)

    def ready(self, events: int) -> None:
        if self._unsent is not None and events & select.EPOLLOUT:
            self._send_rest(self._unsent)
        if events & ~select.EPOLLOUT and self.open:
            try:
                data = self._recv(_READ_BYTES)
                if data:
                    self._feed(data)
                    return
            except BlockingIOError:
                return
            except (OSError, httptools.HttpParserError):
                pass
            self._lost()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == _RETRY_AFTER and name.lower() == b"retry-after":
            self._retry_after = True
        elif len(name) == _SERVER_TIMING and name.lower() == b"server-timing":
            self._timing = value

    def on_message_complete(self) -> None:
        self.used = True
        asked, self._asked = self._asked, None
        if asked is None or not self._parser.should_keep_alive():
            self.close()
        else:
            self._client.idle.append(self)
        if asked is not None:
            status = self._parser.get_status_code()
            self._client.settle(asked, status, self._retry_after, self._timing)

    def close(self) -> None:
        """Leaves what still comes to nobody."""
        if self.open:
            self.open, self._asked = False, None
            del self._client.connections[self.descriptor]
            self._socket.close()  # the poll forgets it

    def _send_rest(self, unsent: memoryview) -> None:
        try:
            rest = unsent[self._send(unsent) :]
        except BlockingIOError:
            return
        except OSError as error:
            # Refused, or an answer was sent and the connection closed before all was read.
            if error.errno != errno.EPIPE:
                self._lost()
            return
        self._unsent = rest if rest else None
        if self._unsent is None:
            self._client.poll.modify(self.descriptor, select.EPOLLIN)

    def _lost(self) -> None:
        asked = self._asked
        self.close()
        if asked is not None:
            self._client.lost(asked, may_ask_again=self.used)


class Client:
    """Takes connections to one address in turn, so that each worker of a server gets its share.

    patience_s: a client waits this long after a request was due, then hangs up.
    """

    def __init__(self, url: str, message: bytes, patience_s: float) -> None:
        where = urlsplit(url)
        self.address = _address(str(where.hostname), where.port or 80)
        self.idle: deque[Connection] = deque()
        self.poll = select.epoll()
        self.connections: dict[int, Connection] = {}
        self._message = message
        self._patience_s = patience_s
        self._began = 0.0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        # All have the same patience, so they lose it in the order in which they were due.
        self._waiting: deque[PendingRequest] = deque()
        self._watching = False

    def begin(self) -> None:
        """Makes this moment second 0."""
        self._began = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._began

    def call_later(self, wait_s: float, callback: Callable[[], None]) -> None:
        timer = (time.perf_counter() + wait_s, next(self._number), callback)
        heapq.heappush(self._timers, timer)

    def ask(self, due_s: float, done: Callable[[Answer], None]) -> None:
        """Calls `done` once, later. due_s: not before that of the request asked last."""
        asked = PendingRequest(due_s, self.now(), done)
        self._waiting.append(asked)
        if not self._watching:
            self._watch_from(asked)
        while self.idle:
            if (connection := self.idle.popleft()).open:
                connection.send(self._message, asked)
                return
        Connection(self, self._message, asked)

    def run(self, start: Callable[[Callable[[list[Answer]], None]], None]) -> list[Answer]:
        """Lets `start` begin a load, and gives it what to call with the answers at the end."""
        found: list[list[Answer]] = []
        start(found.append)
        timers, connections, poll = self._timers, self.connections, self.poll.poll
        while not found:
            # poll rounds up to a millisecond, this to the nearest: no bias in when is sent.
            wait_s = timers[0][0] - time.perf_counter() - _TICK_S if timers else None
            for descriptor, events in poll(wait_s if wait_s is None else max(0.0, wait_s), 64):
                if (connection := connections.get(descriptor)) is not None:
                    connection.ready(events)
            while timers and timers[0][0] - time.perf_counter() < _TICK_S:
                heapq.heappop(timers)[2]()
        return found[0]

    def settle(
        self, asked: PendingRequest, status: int, retry_after: bool = False, timing: bytes = b""
    ) -> None:
        done, asked.done, asked.connection = asked.done, None, None
        if done is not None:
            done(Answer(asked.due_s, asked.sent_s, self.now(), status, retry_after, timing))

    def lost(self, asked: PendingRequest, *, may_ask_again: bool) -> None:
        # A kept connection may be closed while a request is on its way: not a refusal.
        if may_ask_again and not asked.again:
            asked.again = True
            Connection(self, self._message, asked)
        else:
            self.settle(asked, NO_ANSWER)

    def close(self) -> None:
        for connection in list(self.connections.values()):
            connection.close()
        self.poll.close()

    def _watch_from(self, first: PendingRequest) -> None:
        self._watching = True
        self.call_later(first.due_s + self._patience_s - self.now(), self._hang_up)

    def _hang_up(self) -> None:
        """Ends the oldest request if it is too old; one timer goes from each to the next."""
        self._watching = False
        late = self.now() - self._patience_s + 1e-3
        while self._waiting:
            asked = self._waiting[0]
            if asked.done is not None:
                if asked.due_s > late:
                    self._watch_from(asked)
                    return
                if asked.connection is not None:
                    asked.connection.close()
                self.settle(asked, NO_ANSWER)
            self._waiting.popleft()


def _address(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """Picks the first of the host's addresses that takes connections; if none does, the first."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for family, kind, _, _, address in found:
        with socket.socket(family, kind) as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(address) == 0:
                return family, address
    return found[0][0], found[0][4]
