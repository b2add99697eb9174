"""Says what the client wants of REST and gRPC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fcn_client.errors import FcnError
from fcn_client.types import Call, Model, OpenStream, RawReply


class AsyncTransport(Protocol):
    """Sends calls over REST or gRPC. Each raises FcnError."""

    async def segment(self, call: Call) -> RawReply: ...

    async def stream(
        self,
        request_id: str,
        window: int,
        answered: Callable[[str, RawReply | FcnError], None],
        ended: Callable[[FcnError], None],
    ) -> OpenStream:
        """Begins a call of `SegmentStream`. Raises: InvalidInput over REST."""
        ...

    async def models(self, timeout_s: float) -> tuple[Model, ...]: ...

    async def ready(self, timeout_s: float) -> bool: ...

    async def close(self) -> None: ...
