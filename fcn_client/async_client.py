"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar, Unpack, overload

from fcn_client import stream
from fcn_client.base import PROBE_S, BaseClient
from fcn_client.errors import FcnError
from fcn_client.flow import Flow
from fcn_client.picture import file_bytes
from fcn_client.progress import length, progress_bar
from fcn_client.request import (
    call_of,
    result_of,
    stream_outcome,
    total_s,
    within,
)
from fcn_client.retry import Patience
from fcn_client.stream import OpenStream
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

    def stream(
        self,
        request_id: str,
        window: int,
        answered: Callable[[str, RawReply | FcnError], None],
        ended: Callable[[FcnError], None],
    ) -> OpenStream:
        """A call of `SegmentStream`. Raises: UnusableInput over REST."""
        ...

    async def models(self, timeout_s: float) -> tuple[Model, ...]: ...

    async def ready(self, timeout_s: float) -> bool: ...

    async def close(self) -> None: ...


class AsyncFcnClient(BaseClient[AsyncTransport]):
    """`FcnClient` for the tasks of one event loop, in which it must be made.

    Files are read, and pictures encoded and decoded, on threads: the loop is never blocked. A
    cancelled call is cancelled on the server, too.
    """

    _sleep: Callable[[float], Awaitable[None]] = staticmethod(asyncio.sleep)

    def _rest(self) -> Callable[[str, Mapping[str, str]], AsyncTransport]:
        from fcn_client.rest import AsyncRestTransport

        return AsyncRestTransport

    def _grpc(self) -> Callable[[str, Mapping[str, str]], AsyncTransport]:
        from fcn_client.rpc import AsyncGrpcTransport

        return AsyncGrpcTransport

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

    async def segment_stream(
        self,
        images: Iterable[I] | AsyncIterable[I],
        output: str = "label_map",
        *,
        window: int = 16,
        ordered: bool = False,
        progress: bool = False,
        **options: Unpack[SegmentOptions],
    ) -> AsyncGenerator[Outcome[I, Any], None]:
        """As FcnClient's, but `images`, which may be asynchronous, is read in this event loop."""
        flow: Flow[I] = self._flow(output, options, ordered)
        with progress_bar(progress, length(images)) as bar:
            async with aclosing(
                stream.in_tasks(self._transport.stream, images, flow, window)
            ) as ends:
                async for settled in ends:
                    bar.update()
                    yield await asyncio.to_thread(stream_outcome, output, settled)

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
