"""Asks a server from the tasks of an event loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, Unpack, overload

from fcn_client.aio.replicas import AsyncReplicas
from fcn_client.aio.stream import drive
from fcn_client.aio.transport import AsyncTransport
from fcn_client.aio.window import in_window
from fcn_client.balance import addresses
from fcn_client.errors import FcnError
from fcn_client.flow import Flow
from fcn_client.images import file_bytes
from fcn_client.progress import length, progress_bar
from fcn_client.request import (
    call_of,
    headers_of,
    is_grpc,
    result_of,
    stream_outcome,
    total_s,
    within,
)
from fcn_client.retry import RetryBudget, RetryPolicy
from fcn_client.tasks import Source, in_thread, sleep
from fcn_client.trust import TlsFiles, trust_of
from fcn_client.types import (
    ImageLike,
    ImageOutput,
    Model,
    Outcome,
    RawReply,
    SegmentOptions,
    SegmentResult,
    UInt8Array,
)

_PROBE_S: Final = 5.0
T = TypeVar("T")
I = TypeVar("I", bound=ImageLike)  # noqa: E741


class AsyncFcnClient:
    """Asks the server behind one address, or the fit one of several, for the tasks of the event
    loop in which it is made.

    Files are read, and images encoded and decoded, on threads: the loop is never blocked. A
    cancelled call is cancelled on the server, too. `async with AsyncFcnClient(url) as client:` or
    `aclose()` gives the connections back.
    """

    _sleep: Callable[[float], Awaitable[None]] = staticmethod(sleep)

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        timeout_s: float = 60.0,
        retry: RetryPolicy | None = None,
        dns: bool = False,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        ca_file: Path | str | None = None,
        cert_file: Path | str | None = None,
        key_file: Path | str | None = None,
    ) -> None:
        """url: http://, https://, grpc:// or grpcs://host:port; for REST behind a prefix, with its
        path. Several, as a list or with commas between them: each request goes to the one with the
        fewest, and where it fails to another. timeout_s: for a request with its retries, unless it
        brings a `deadline_ms`. dns: take every IP address behind the host's name for a server.
        api_key: for a server that wants one; sent as it is, so not without TLS over a network that
        others use. headers: sent with every request, for a proxy that wants them.
        ca_file, cert_file, key_file: see `TlsFiles`.

        Raises: InvalidInput. The server is not asked yet.
        """
        urls = addresses(url)
        self.url = ",".join(urls)
        self._timeout_s = timeout_s
        self._retry = retry or RetryPolicy()
        sent = headers_of(headers, api_key)
        files: TlsFiles = {"ca_file": ca_file, "cert_file": cert_file, "key_file": key_file}
        trusts = {one: trust_of(one, files) for one in urls}
        # Imported as needed: REST works without grpcio, gRPC without httpx.
        connect: Callable[[str, str | None], AsyncTransport]
        if is_grpc(urls[0]):
            from fcn_client.aio.rpc import AsyncGrpcTransport

            def connect(url: str, ip: str | None) -> AsyncTransport:
                return AsyncGrpcTransport(url, sent, trusts[url], ip)
        else:
            from fcn_client.aio.rest import AsyncRestTransport

            def connect(url: str, ip: str | None) -> AsyncTransport:
                return AsyncRestTransport(url, sent, trusts[url], ip)

        self._transport: AsyncTransport
        if dns or len(urls) > 1:
            self._transport = AsyncReplicas(urls, connect, self._retry, dns)
        else:
            self._transport = connect(urls[0], None)

    @overload
    async def segment(
        self, image: ImageLike, output: ImageOutput = "label_map", **options: Unpack[SegmentOptions]
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
        """Segments one image: a path, a file's bytes, uint8 RGB [H,W,3] or a Pillow image.

        output: `label_map`, `color`, `overlay`, `json`, or another that the server has.
        options: see `SegmentOptions`. Raises: FcnError.
        """
        call = call_of(await in_thread(file_bytes, image), output, options)

        async def ask(left_s: float) -> RawReply:
            return await self._transport.segment(within(call, left_s))

        reply, attempts = await self._with_retries(total_s(options, self._timeout_s), ask)
        return await in_thread(result_of, output, reply, attempts)

    @overload
    def segment_many(
        self,
        images: Source[I],
        output: ImageOutput = "label_map",
        *,
        in_flight: int = 4,
        ordered: bool = True,
        progress: bool = False,
        **options: Unpack[SegmentOptions],
    ) -> AsyncGenerator[Outcome[I, UInt8Array], None]: ...

    @overload
    def segment_many(
        self,
        images: Source[I],
        output: Literal["json"],
        *,
        in_flight: int = 4,
        ordered: bool = True,
        progress: bool = False,
        **options: Unpack[SegmentOptions],
    ) -> AsyncGenerator[Outcome[I, dict[str, Any]], None]: ...

    @overload
    def segment_many(
        self,
        images: Source[I],
        output: str,
        *,
        in_flight: int = 4,
        ordered: bool = True,
        progress: bool = False,
        **options: Unpack[SegmentOptions],
    ) -> AsyncGenerator[Outcome[I, Any], None]: ...

    async def segment_many(
        self,
        images: Source[I],
        output: str = "label_map",
        *,
        in_flight: int = 4,
        ordered: bool = True,
        progress: bool = False,
        **options: Unpack[SegmentOptions],
    ) -> AsyncGenerator[Outcome[I, Any], None]:
        """Segments many images, `in_flight` of them at a time; `images` is read as there is room.

        Yields them in their order, or (`ordered=False`) as they finish. One that fails is an
        outcome with its `error`; the others go on. progress: a bar on stderr, with tqdm.
        """

        async def work(index: int, image: I) -> Outcome[I, Any]:
            try:
                return Outcome(index, image, await self.segment(image, output, **options))
            except FcnError as error:
                return Outcome(index, image, error=error)

        with progress_bar(progress, length(images)) as bar:
            async with aclosing(in_window(work, images, in_flight, ordered)) as outcomes:
                async for outcome in outcomes:
                    bar.update()
                    yield outcome

    async def segment_stream(
        self,
        images: Source[I],
        output: str = "label_map",
        *,
        window: int = 16,
        ordered: bool = False,
        progress: bool = False,
        **options: Unpack[SegmentOptions],
    ) -> AsyncGenerator[Outcome[I, Any], None]:
        """Segments many images over one gRPC call (`SegmentStream`): a camera's or video's frames.

        `images` is read in this event loop, at most `window` images ahead of what was
        yielded; an image without its answer goes over a new call when one breaks. Yields them as
        they finish, or (`ordered`) in their order. One that fails is an outcome with its `error`.
        options: of every image; `deadline_ms` and `timeout_s` count from when it was read,
        `request_id` is the call's: an image's is `<request_id>/<index>`.

        Raises: InvalidInput over REST; NotAuthenticated, NotAllowed or ServerError (501) where no
        image could be served; what `images` raises.
        """
        flow: Flow[I] = Flow(output, options, self._retry, self._timeout_s, ordered)
        with progress_bar(progress, length(images)) as bar:
            async with aclosing(drive(self._transport.stream, images, flow, window)) as results:
                async for result in results:
                    bar.update()
                    yield await in_thread(stream_outcome, output, result)

    async def models(self) -> tuple[Model, ...]:
        """Lists what the server holds, by name. Raises: FcnError."""
        return (await self._with_retries(self._timeout_s, self._transport.models))[0]

    async def ready(self) -> bool:
        """Tells whether the server wants requests now; False, too, when it cannot be reached."""
        try:
            return await self._transport.ready(min(self._timeout_s, _PROBE_S))
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

    async def _with_retries(
        self, seconds: float, ask: Callable[[float], Awaitable[T]]
    ) -> tuple[T, int]:
        """Returns the answer and the number of attempts it took. Raises: FcnError."""
        budget = RetryBudget(self._retry, seconds)
        while True:
            left_s = budget.begin()
            try:
                return await ask(left_s), budget.attempts
            except FcnError as error:
                wait_s = budget.wait_s(error)
            await self._sleep(wait_s)
