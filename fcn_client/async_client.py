"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar, Unpack, overload

from fcn_client.client import PROBE_S
from fcn_client.errors import FcnError
from fcn_client.picture import file_bytes
from fcn_client.progress import length, progress_bar
from fcn_client.request import call_of, is_grpc, result_of, total_s, within
from fcn_client.retry import Patience, RetryPolicy
from fcn_client.types import (
    Call,
    ImageLike,
    Model,
    Outcome,
    PictureOutput,
    RawReply,
    SegmentOptions,
    SegmentResult,
    UInt8Array,
)
from fcn_client.window import in_tasks

T = TypeVar("T")
I = TypeVar("I", bound=ImageLike)  # noqa: E741


class AsyncTransport(Protocol):
    """REST or gRPC. Each call raises FcnError."""

    async def segment(self, call: Call) -> RawReply: ...

    async def models(self, timeout_s: float) -> tuple[Model, ...]: ...

    async def ready(self, timeout_s: float) -> bool: ...

    async def close(self) -> None: ...


class AsyncFcnClient:
    """`FcnClient` for the tasks of one event loop, in which it must be made.

    Files are read, and pictures encoded and decoded, on threads: the loop is never blocked. A
    cancelled call is cancelled on the server, too.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 60.0,
        retry: RetryPolicy | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """As FcnClient's."""
        self.url = url
        self._timeout_s = timeout_s
        self._retry = retry or RetryPolicy()
        self._sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
        self._transport = _transport(url, headers or {})

    @overload
    async def segment(
        self,
        image: ImageLike,
        output: PictureOutput = "label_map",
        **options: Unpack[SegmentOptions],
    ) -> SegmentResult[UInt8Array]: ...

    @overload
    async def segment(
        self, image: ImageLike, output: Literal["json"], **options: Unpack[SegmentOptions]
    ) -> SegmentResult[dict[str, Any]]: ...

    @overload
    async def segment(
        self, image: ImageLike, output: str, **options: Unpack[SegmentOptions]
    ) -> SegmentResult[Any]: ...

    async def segment(
        self, image: ImageLike, output: str = "label_map", **options: Unpack[SegmentOptions]
    ) -> SegmentResult[Any]:
        """As FcnClient's."""
        call = call_of(await asyncio.to_thread(file_bytes, image), output, options)

        async def ask(left_s: float) -> RawReply:
            return await self._transport.segment(within(call, left_s))

        reply, attempts = await self._patiently(total_s(options, self._timeout_s), ask)
        return await asyncio.to_thread(result_of, output, reply, attempts)

    async def segment_many(
        self,
        images: Iterable[I] | AsyncIterable[I],
        output: str = "label_map",
        *,
        in_flight: int = 4,
        ordered: bool = True,
        progress: bool = False,
        **options: Unpack[SegmentOptions],
    ) -> AsyncGenerator[Outcome[I, Any], None]:
        """As FcnClient's; `images` may be asynchronous."""

        async def work(index: int, image: I) -> Outcome[I, Any]:
            try:
                return Outcome(index, image, await self.segment(image, output, **options))
            except FcnError as error:
                return Outcome(index, image, error=error)

        with progress_bar(progress, length(images)) as bar:
            async with aclosing(in_tasks(work, images, in_flight, ordered)) as outcomes:
                async for outcome in outcomes:
                    bar.update()
                    yield outcome

    async def models(self) -> tuple[Model, ...]:
        """As FcnClient's."""
        return (await self._patiently(self._timeout_s, self._transport.models))[0]

    async def ready(self) -> bool:
        """As FcnClient's."""
        try:
            return await self._transport.ready(min(self._timeout_s, PROBE_S))
        except FcnError:
            return False

    async def aclose(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _patiently(
        self, seconds: float, ask: Callable[[float], Awaitable[T]]
    ) -> tuple[T, int]:
        """The answer and the number of attempts it took. Raises: FcnError."""
        patience = Patience(self._retry, seconds)
        while True:
            left_s = patience.begin()
            try:
                return await ask(left_s), patience.attempts
            except FcnError as error:
                wait_s = patience.wait_s(error)
            await self._sleep(wait_s)


def _transport(url: str, headers: Mapping[str, str]) -> AsyncTransport:
    if is_grpc(url):
        from fcn_client.rpc import AsyncGrpcTransport

        return AsyncGrpcTransport(url, headers)
    from fcn_client.rest import AsyncRestTransport

    return AsyncRestTransport(url, headers)
