# Made from fcn_client/aio/replicas.py by `make sync`: change that.
"""Spreads the calls of one client over several servers, each with a transport of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Final, TypeVar

from fcn_client.balance import PROBE_S, RESOLVE_S, Balance, Replica, resolve
from fcn_client.errors import FcnConnectionError, FcnError, FcnTimeoutError, ServerError
from fcn_client.request import within
from fcn_client.retry import RetryPolicy
from fcn_client.sync.transport import Transport
from fcn_client.threads import in_thread
from fcn_client.types import Call, Model, OpenStream, RawReply

T = TypeVar("T")
_ANY: Final = ("", "")


class Replicas:
    """Sends each call to the fit server with the fewest."""

    def __init__(
        self,
        urls: list[str],
        connect: Callable[[str, str | None], Transport],
        policy: RetryPolicy,
        dns: bool,
    ) -> None:
        """connect: makes the transport of an address, or with `dns` of one IP address behind it."""
        self._urls, self._connect, self._policy, self._dns = urls, connect, policy, dns
        self._balance: Balance[Transport] = Balance()
        self._leaving: list[Replica[Transport]] = []
        self._resolved_s = -RESOLVE_S
        if not dns:
            self._balance.replace(urls, lambda url: connect(url, None))

    def segment(self, call: Call) -> RawReply:
        def ask(transport: Transport, left_s: float) -> RawReply:
            return transport.segment(within(call, left_s))

        return self._ask((call.model, call.version), call.timeout_s, ask)

    def models(self, timeout_s: float) -> tuple[Model, ...]:
        def ask(transport: Transport, left_s: float) -> tuple[Model, ...]:
            return transport.models(left_s)

        return self._ask(_ANY, timeout_s, ask)

    def ready(self, timeout_s: float) -> bool:
        """Tells whether one of them is."""
        self._look_up()
        replicas = list(self._balance.replicas)
        for replica in sorted(replicas, key=lambda r: r.failures):
            try:
                if replica.transport.ready(timeout_s / len(replicas)):
                    return True
            except FcnError:
                continue
        return False

    def stream(
        self,
        request_id: str,
        window: int,
        answered: Callable[[str, RawReply | FcnError], None],
        ended: Callable[[FcnError], None],
    ) -> OpenStream:
        replica = self._pick(_ANY, window)

        def failed(error: FcnError) -> None:
            self._balance.done(replica, _ANY, error, held.pop_weight())
            ended(error)

        def closed() -> None:
            self._balance.cancelled(replica, held.pop_weight())

        held = _Held(window)
        try:
            stream = replica.transport.stream(request_id, window, answered, failed)
        except BaseException:
            closed()
            raise
        return _Stream(stream, closed)

    def close(self) -> None:
        for replica in (*self._balance.replicas, *self._leaving):
            replica.transport.close()

    def _ask(
        self,
        want: Hashable,
        left_s: float,
        ask: Callable[[Transport, float], T],
    ) -> T:
        ends = time.monotonic() + left_s
        replica = self._pick(want)
        left_s = max(0.001, ends - time.monotonic())
        policy = self._policy
        share_s = self._balance.share_s(want, left_s, policy.attempt_s, policy.max_attempts)
        try:
            answer = ask(replica.transport, share_s)
        except FcnError as error:
            self._balance.done(replica, want, error)
            raise
        except BaseException:
            self._balance.cancelled(replica)
            raise
        self._balance.done(replica, want, None)
        return answer

    def _pick(self, want: Hashable, weight: int = 1) -> Replica[Transport]:
        self._look_up()
        replica, probe = self._balance.pick(want, True, weight)
        if not probe:
            return replica
        problem: FcnError | None = FcnTimeoutError("it was not asked to the end")
        try:
            if replica.transport.ready(PROBE_S):
                problem = None
            else:
                problem = FcnConnectionError("it is not ready")
        except ServerError:
            problem = None  # it has no such question; but it answers
        except FcnError as error:
            problem = error
        except BaseException:
            self._balance.cancelled(replica, weight)
            raise
        finally:
            self._balance.probed(replica, problem)
        if problem is None:
            return replica
        self._balance.cancelled(replica, weight)
        return self._balance.pick(want, False, weight)[0]

    def _look_up(self) -> None:
        """Asks the name service anew, if that is due; what it said last counts while it is away."""
        if not self._dns or time.monotonic() < self._resolved_s + RESOLVE_S:
            return
        if self._balance.replicas:
            self._resolved_s = time.monotonic()  # others go on with what is known
        found: dict[str, tuple[str, str]] = {}
        for url in self._urls:
            try:
                ips = in_thread(resolve, url)
            except FcnError:
                if not self._balance.replicas:
                    raise
                return
            found |= {f"{url} ({ip})": (url, ip) for ip in ips}
        self._resolved_s = time.monotonic()
        self._leaving += self._balance.replace(found, lambda name: self._connect(*found[name]))
        for replica in [r for r in self._leaving if not r.outstanding]:
            self._leaving.remove(replica)
            replica.transport.close()


class _Held:
    """Counts a stream's images once, whether it is closed, ends, or both at the same time."""

    def __init__(self, weight: int) -> None:
        self._weights = [weight]

    def pop_weight(self) -> int:
        try:
            return self._weights.pop()  # atomic, and another thread may be here
        except IndexError:
            return 0


class _Stream:
    """Counts a call of `SegmentStream` until it is closed."""

    def __init__(self, stream: OpenStream, closed: Callable[[], None]) -> None:
        self._stream, self._closed = stream, closed

    def send(self, id: str, call: Call) -> None:
        self._stream.send(id, call)

    def close(self) -> None:
        self._closed()
        self._stream.close()
