"""Both clients under one interface, so that one test holds both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Self, TypeVar

import pytest

from fcn_client import AsyncFcnClient, FcnClient, Model, Outcome, SegmentResult

T = TypeVar("T")


class Awaited:
    """Runs `AsyncFcnClient` in an event loop of its own, a call at a time."""

    def __init__(self, url: str | Sequence[str], **options: Any) -> None:
        self._runner = asyncio.Runner()
        try:
            self._client = self._runner.run(self._made(url, options))
        except BaseException:
            self._runner.close()
            raise

    @staticmethod
    async def _made(url: str | Sequence[str], options: dict[str, Any]) -> AsyncFcnClient:
        return AsyncFcnClient(url, **options)

    def segment(self, *args: Any, **options: Any) -> SegmentResult[Any]:
        return self._runner.run(self._client.segment(*args, **options))

    def segment_many(self, *args: Any, **options: Any) -> list[Outcome[Any, Any]]:
        return self._runner.run(_all(self._client.segment_many(*args, **options)))

    def segment_stream(self, *args: Any, **options: Any) -> list[Outcome[Any, Any]]:
        return self._runner.run(_all(self._client.segment_stream(*args, **options)))

    def models(self) -> tuple[Model, ...]:
        return self._runner.run(self._client.models())

    def ready(self) -> bool:
        return self._runner.run(self._client.ready())

    def note_sleep(self, note: Callable[[float], None]) -> None:
        async def sleep(seconds: float) -> None:
            note(seconds)

        self._client._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()


class Threaded(FcnClient):
    def note_sleep(self, note: Callable[[float], None]) -> None:
        self._sleep = note


async def _all(outcomes: AsyncIterator[T]) -> list[T]:
    return [outcome async for outcome in outcomes]


async def later(items: Iterable[T]) -> AsyncIterator[T]:
    """Makes an asynchronous source of any."""
    for item in items:
        yield item


Client = type[Threaded] | type[Awaited]
EITHER = pytest.mark.parametrize("client_of", [Threaded, Awaited], ids=["threads", "asyncio"])
