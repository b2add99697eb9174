# Made from fcn_client/aio/transport.py by `make sync`: change that.
"""Says what the client wants of REST and gRPC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fcn_client.errors import FcnError
from fcn_client.types import Call, Model, OpenStream, RawReply


class Transport(Protocol):
    """Sends calls over REST or gRPC. Each raises FcnError."""

    def segment(self, call: Call) -> RawReply: ...

    def stream(
        self,
        request_id: str,
        window: int,
        answered: Callable[[str, RawReply | FcnError], None],
        ended: Callable[[FcnError], None],
    ) -> OpenStream:
        """Begins a call of `SegmentStream`. Raises: InvalidInput over REST."""
        ...

    def models(self, timeout_s: float) -> tuple[Model, ...]: ...

    def ready(self, timeout_s: float) -> bool: ...

    def close(self) -> None: ...
