"""Ends streams when the server stops: one that only waits for its caller would hold up the drain
until FCN_DRAIN_S is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from grpc import aio
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

T = TypeVar("T")


async def unless_set(closing: asyncio.Event, work: Awaitable[T]) -> T | None:
    """Returns what `work` does; None, and cancels it, when `closing` is set first."""
    working = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(closing.wait())
    try:
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        waiting.cancel()


class Health(health.aio.HealthServicer):  # type: ignore[misc,name-defined]  # stubs lack it
    """Serves grpc.health.v1, of which `Watch` goes on until its caller leaves."""

    def __init__(self, closing: asyncio.Event) -> None:
        super().__init__()
        self._closing = closing

    async def Watch(self, request: Any, context: aio.ServicerContext[Any, Any]) -> None:
        await unless_set(self._closing, super().Watch(request, context))


class Reflection(reflection.aio.ReflectionServicer):  # type: ignore[misc,name-defined]
    """Serves grpc.reflection, one call of which asks as often as its caller likes."""

    def __init__(self, services: tuple[str, ...], closing: asyncio.Event) -> None:
        super().__init__(services)
        self._closing = closing

    async def ServerReflectionInfo(
        self, requests: AsyncIterator[Any], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        async for answer in super().ServerReflectionInfo(self._read(requests), context):
            yield answer

    async def _read(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        waiting = aiter(requests)
        while (request := await unless_set(self._closing, anext(waiting, None))) is not None:
            yield request
