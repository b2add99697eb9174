"""Bounds what the peers of gRPC connections make this process hold: messages that are not complete,
and answers that nobody reads.

gRPC's core assembles a message before any code of ours sees it, with one limit for all methods, and
tells nobody how much of it is there. The kernel does: it counts the bytes that came over each
connection. Less those of the messages that were complete, they are what is being assembled. So the
sockets are looked at, every 50 ms while a call waits for a message; a call that has its message by
then costs nothing but an entry here.

Headers without an end cost gRPC's core six times what comes. Messages differ from them in that the
server says, after a megabyte at most, that it takes more: a peer who sends on and is sent nothing
sends no message.

A peer that takes no more bytes cannot be told of an error, and gRPC cannot end its calls. Its
connection is shut.

Only Linux tells of sockets so: elsewhere a message is bounded by gRPC's own limit alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from grpc import aio

from service.api.uploads import RETRY_UPLOAD_S, Uploads
from service.errors import MessageTooLarge, Overloaded, ServiceError, UploadTooSlow

Context = aio.ServicerContext[Any, Any]

LOOK_S: Final = 0.05
"""A peer on the same machine sends about 50 MB in it."""
LOOK_AT_ALL_S: Final = 1.0
MAX_WAITING: Final = 4096
"""Calls that wait for a message, of all connections. Each costs some 20 kB."""
SLACK_BYTES: Final = 1024 * 1024
"""A connection may send so much around its messages: frames, headers, windows of refused calls."""
UNANSWERED_BYTES: Final = 2 * 1024 * 1024
"""A connection may send so much while nothing comes of it: gRPC's core gives windows of 1,114,111
bytes at most (gRPC 1.85)."""
ALL_UNANSWERED_BYTES: Final = 32 * 1024 * 1024
"""All connections together; whoever sent most goes first."""
OVERHEAD: Final = 50
"""For so many bytes of messages one more comes with them, at most: frames of HTTP/2 and records of
TLS add 0.2 % to messages of a few kB and more, small records of a careful sender 2 %."""
PARTIAL_BYTES: Final = 64 * 1024
"""From so many on a message counts as begun. The first window of HTTP/2."""
LOOK_AROUND_S: Final = 0.5
PINGS_BYTES: Final = 2 * 1024
"""A connection without a call that is new may send so much between two looks at all: pings."""
UNREAD_S: Final = 60.0
"""An answer may wait so long for a peer that reads nothing, and `UNREAD_CLOSING_S` when the server
stops; for every 64 KiB of it a second longer."""
UNREAD_CLOSING_S: Final = 3.0
CUT_S: Final = 0.005
"""gRPC reports the end of a stream in the same way when the call was cut off, and says so a moment
later."""

UNREAD: Final = "does not read its answers"
_FDS: Final = Path("/proc/self/fd")
_COUNTS: Final = struct.Struct("@120xQQ")
"""Reads tcpi_bytes_acked, which we sent, and tcpi_bytes_received. Source: linux/tcp.h, struct
tcp_info."""
_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Reading:
    """Holds one call that waits for a message. base: bytes that the connection had received and
    delivered when it began, at most."""

    max_bytes: int
    scope: asyncio.Timeout
    base: tuple[int, int] | None = None
    fault: ServiceError | None = None


@dataclass(eq=False, slots=True)
class _Connection:
    """Holds what is known of one connection.

    delivered: bytes of complete messages. seen: bytes received and delivered, at the last look.
    answers: when the sending of each began, and its bytes. progress_s: when a message was complete,
    or none had begun. signs: of life that our code saw, counted.
    """

    progress_s: float
    fd: int | None = None
    signs: int = 0
    delivered: int = 0
    seen: tuple[int, int] = (0, 0)
    incomplete: int = 0
    readings: set[_Reading] = field(default_factory=set)
    answers: dict[object, tuple[float, int]] = field(default_factory=dict)

    def look(self, received: int, now_s: float) -> None:
        for reading in self.readings:
            if reading.base is None:
                reading.base = self.seen
        base = min((r.base for r in self.readings if r.base), default=(received, self.delivered))
        self.incomplete = max(0, received - base[0] - (self.delivered - base[1]))
        around = (self.delivered - base[1]) // OVERHEAD
        if self.incomplete <= PARTIAL_BYTES + around or self.delivered != self.seen[1]:
            self.progress_s = now_s
        self.seen = received, self.delivered

    def refuse(self, fault: ServiceError, now_s: float) -> None:
        """Ends the reading of its calls with that error."""
        self.incomplete = 0
        for reading in self.readings:
            if reading.fault is None:
                reading.fault = fault
                reading.scope.reschedule(now_s)

    def held(self, before_s: float) -> int:
        """Counts the bytes of answers whose sending began before that."""
        return sum(n for began_s, n in self.answers.values() if began_s < before_s)

    def unread(self, now_s: float, allowed_s: float) -> bool:
        """Says whether an answer has waited for too long."""
        return any(
            now_s - began_s > allowed_s + n_bytes / 65536
            for began_s, n_bytes in self.answers.values()
        )


class Connections:
    """Knows the connections over which calls came, by peer."""

    def __init__(self, uploads: Uploads, *, closing: asyncio.Event) -> None:
        """uploads: has the budget of bytes, which bodies over HTTP share. closing: see
        `GrpcServer`."""
        self.uploads = uploads
        self.closing = closing
        self._known: dict[str, _Connection] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looked_at_all_s = 0.0
        self._used = False
        # By peer: its signs, and what it was sent and had sent when something came of that.
        self._quiet: dict[str, tuple[int, int, int]] = {}

    def watch(self, port: int) -> None:
        """Looks at every connection of that port from now on, also where no call has begun."""
        if _FDS.exists():
            self._look_around(port)

    def knows(self, context: Context) -> None:
        """Is told of every call, before anything of it is read."""
        self._connection(context)

    async def read(
        self, context: Context, max_bytes: int, timeout_s: float | None = None
    ) -> bytes | None:
        """Reads a call's next message, as it was sent; None at its end.

        max_bytes: of this method's messages, beyond which none is assembled to its end.

        Raises: MessageTooLarge, Overloaded, UploadTooSlow.
        """
        connection = self._connection(context)
        try:
            async with asyncio.timeout(timeout_s) as scope:
                reading = _Reading(max_bytes, scope)
                connection.readings.add(reading)
                try:
                    message = await context.read()
                finally:
                    connection.readings.discard(reading)
                    connection.signs += 1  # what came since the last look came to something
        except TimeoutError:
            if not scope.expired():
                raise
            raise reading.fault or UploadTooSlow(timeout_s or 0.0) from None
        if message is aio.EOF:  # type: ignore[attr-defined]  # stubs lack it
            await asyncio.sleep(CUT_S)
            return None
        n_bytes = len(message)
        connection.delivered += n_bytes
        if connection.incomplete:
            known = min(n_bytes, connection.incomplete)
            connection.incomplete -= known
            self.uploads.incomplete -= known
        if n_bytes > max_bytes:
            raise MessageTooLarge(max_bytes)
        return bytes(message)

    async def write(self, context: Context, message: Any, n_bytes: int) -> None:
        """Sends a message of a stream, and knows how long that takes."""
        with self.owes(context, n_bytes):
            try:
                await context.write(message)
            except aio.InternalError:
                # The call has ended meanwhile, at its deadline, say.
                raise asyncio.CancelledError from None

    @contextmanager
    def owes(self, context: Context, n_bytes: int) -> Iterator[None]:
        """Holds, for a `with` block, that an answer of a stream is there and not sent yet."""
        answers, answer = self._connection(context).answers, object()
        answers[answer] = asyncio.get_running_loop().time(), n_bytes
        try:
            yield
        finally:
            del answers[answer]

    def ends(self, context: Context, n_bytes: int) -> None:
        """Knows from here on that a call waits for its last bytes to be sent."""
        answers, answer = self._connection(context).answers, object()
        answers[answer] = asyncio.get_running_loop().time(), n_bytes

        def sent(_: object) -> None:
            answers.pop(answer, None)

        context.add_done_callback(sent)  # type: ignore[arg-type]  # stubs name its argument

    def _connection(self, context: Context) -> _Connection:
        peer = context.peer()
        connection = self._known.get(peer)
        if connection is None:
            now_s = asyncio.get_running_loop().time()
            connection = self._known[peer] = _Connection(now_s)
        self._used = True
        connection.signs += 1
        if self._timer is None and _FDS.exists():
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)
        return connection

    def _look_around(self, port: int) -> None:
        """Shuts the connections of which megabytes came, and nothing of them."""
        quiet: dict[str, tuple[int, int, int]] = {}
        unanswered: dict[str, int] = {}
        sockets = _sockets(port)
        for peer, fd in sockets.items():
            known = self._known.get(peer)
            signs = 0 if known is None else known.signs
            reads = known is not None and bool(known.readings)
            with _opened(peer, fd) as opened:
                if opened is None:
                    continue
                acked, received = _counts(opened)
            signs_then, acked_then, base = self._quiet.get(peer, (0, 0, 0))
            if signs != signs_then or (reads and acked != acked_then):
                base = received
            unanswered[peer] = received - base
            quiet[peer] = signs, acked, min(received, base + PINGS_BYTES)
        total = sum(unanswered.values())
        for peer in sorted(unanswered, key=unanswered.__getitem__, reverse=True):
            if unanswered[peer] <= UNANSWERED_BYTES and total <= ALL_UNANSWERED_BYTES:
                break
            total -= unanswered[peer]
            self._shut(peer, sockets[peer], "sends what is no call and no message")
        self._quiet = quiet
        asyncio.get_running_loop().call_later(LOOK_AROUND_S, self._look_around, port)

    def _look(self) -> None:
        """Looks at the connections with calls that wait for a message; once a second, at all."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        of_all = now_s - self._looked_at_all_s >= LOOK_AT_ALL_S
        if of_all:
            self._looked_at_all_s = now_s
        busy = {p: c for p, c in self._known.items() if of_all or c.readings}
        if any(connection.fd is None for connection in busy.values()):
            for peer, fd in _sockets().items():
                if (known := self._known.get(peer)) is not None:
                    known.fd = fd
        for peer, connection in busy.items():
            with _opened(peer, connection.fd) as opened:
                if opened is not None:
                    connection.look(_counts(opened)[1], now_s)
                elif not connection.readings and not connection.answers:
                    del self._known[peer]
                else:
                    connection.fd = None
        self._bound_messages(now_s)
        if of_all:
            self._bound_answers(now_s)
        idle = of_all and not self._used
        if idle and not any(c.readings or c.answers for c in self._known.values()):
            self._timer = None  # until the next call
            return
        self._used = self._used and not of_all
        self._timer = loop.call_later(LOOK_S, self._look)

    def _bound_messages(self, now_s: float) -> None:
        uploads = self.uploads
        waiting = [c for c in self._known.values() if c.readings]
        for connection in waiting:
            limits = [reading.max_bytes for reading in connection.readings]
            allowed = sum(limits) + sum(limits) // OVERHEAD + SLACK_BYTES
            if connection.incomplete > allowed:
                connection.refuse(MessageTooLarge(min(limits)), now_s)
            elif now_s - connection.progress_s > uploads.timeout_s:
                connection.refuse(UploadTooSlow(uploads.timeout_s), now_s)
        n_calls = sum(len(connection.readings) for connection in waiting)
        waiting.sort(key=lambda connection: len(connection.readings))
        for connection in reversed(waiting):
            if n_calls <= MAX_WAITING:
                break
            n_calls -= len(connection.readings)
            connection.refuse(Overloaded(RETRY_UPLOAD_S), now_s)
        waiting.sort(key=lambda connection: connection.incomplete)
        uploads.incomplete = sum(connection.incomplete for connection in waiting)
        while uploads.full and waiting:
            largest = waiting.pop()
            if not waiting and len(largest.readings) == 1:
                break  # a single message always fits
            uploads.incomplete -= largest.incomplete
            uploads.rejected("uploads")
            largest.refuse(Overloaded(RETRY_UPLOAD_S), now_s)

    def _bound_answers(self, now_s: float) -> None:
        allowed_s = UNREAD_CLOSING_S if self.closing.is_set() else UNREAD_S
        held: dict[str, int] = {}
        for peer, connection in self._known.items():
            if connection.unread(now_s, allowed_s):
                self._shut(peer, connection.fd, UNREAD)
            elif n_bytes := connection.held(now_s - LOOK_AT_ALL_S):
                held[peer] = n_bytes
        while sum(held.values()) > self.uploads.max_bytes:
            largest = max(held, key=held.__getitem__)
            if len(held) == 1 and len(self._known[largest].answers) == 1:
                break  # a single answer always fits
            del held[largest]
            self._shut(largest, self._known[largest].fd, UNREAD)

    def _shut(self, peer: str, fd: int | None, why: str) -> None:
        _log.warning("closed the connection of %s, which %s", peer, why)
        with _opened(peer, fd) as opened:
            if opened is not None:
                opened.shutdown(socket.SHUT_RDWR)


@contextmanager
def _opened(peer: str, fd: int | None) -> Iterator[socket.socket | None]:
    """Lends a second handle of the peer's socket, which closes the connection of none; None when
    `fd` is that of another by now."""
    if fd is None:
        yield None
        return
    try:
        opened = socket.socket(fileno=os.dup(fd))
    except OSError:
        yield None
        return
    with opened:
        yield opened if _peer(opened) == peer else None


def _peer(opened: socket.socket) -> str | None:
    """Names it as gRPC does."""
    try:
        host, port = opened.getpeername()[:2]
    except (OSError, ValueError):  # it listens, or is no socket of the network
        return None
    if ":" in (host := host.removeprefix("::ffff:")):
        return f"ipv6:%5B{host}%5D:{port}"
    return f"ipv4:{host}:{port}"


def _sockets(port: int | None = None) -> dict[str, int]:
    """Lists the file descriptors of this process's connections, by peer. port: of this one only."""
    found = {}
    for name in os.listdir(_FDS):
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as opened:
                    if (peer := _peer(opened)) is None:
                        continue
                    if port is None or opened.getsockname()[1] == port:
                        found[peer] = int(name)
        except OSError:  # closed meanwhile
            continue
    return found


def _counts(opened: socket.socket) -> tuple[int, int]:
    """Returns how many bytes the peer has taken, and how many it has sent."""
    info = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _COUNTS.size)
    if len(info) < _COUNTS.size:
        return 0, 0
    acked, received = _COUNTS.unpack(info)
    return acked, received
