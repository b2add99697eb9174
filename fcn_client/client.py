"""The client for threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
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
from fcn_client.window import on_threads

T = TypeVar("T")
I = TypeVar("I", bound=ImageLike)  # noqa: E741


class Transport(Protocol):
    """REST or gRPC. Each call raises FcnError."""

    def segment(self, call: Call) -> RawReply: ...

    def stream(
        self,
        request_id: str,
        window: int,
        answered: Callable[[str, RawReply | FcnError], None],
        ended: Callable[[FcnError], None],
    ) -> OpenStream:
        """A call of `SegmentStream`. Raises: UnusableInput over REST."""
        ...

    def models(self, timeout_s: float) -> tuple[Model, ...]: ...

    def ready(self, timeout_s: float) -> bool: ...

    def close(self) -> None: ...


class FcnClient(BaseClient[Transport]):
    """A server behind one address. Threads may share it, and with it its connections.

    `with FcnClient(url) as client:` or `close()` gives the connections back.
    """

    _sleep: Callable[[float], None] = staticmethod(time.sleep)

    def _rest(self) -> Callable[[str, Mapping[str, str]], Transport]:
        from fcn_client.rest import RestTransport

        return RestTransport

    def _grpc(self) -> Callable[[str, Mapping[str, str]], Transport]:
        from fcn_client.rpc import GrpcTransport

        return GrpcTransport

    @overload
    def segment(
        self,
        image: ImageLike,
        output: PictureOutput = "label_map",
        **options: Unpack[SegmentOptions],
    ) -> SegmentResult[UInt8Array]: ...

    @overload
    def segment(
        self, image: ImageLike, output: Literal["json"], **options: Unpack[SegmentOptions]
    ) -> SegmentResult[dict[str, Any]]: ...

    @overload
    def segment(
        self, image: ImageLike, output: str, **options: Unpack[SegmentOptions]
    ) -> SegmentResult[Any]: ...

    def segment(
        self, image: ImageLike, output: str = "label_map", **options: Unpack[SegmentOptions]
    ) -> SegmentResult[Any]:
        """One picture: a path, a file's bytes, uint8 RGB [H,W,3] or a Pillow image.

        output: `label_map`, `color`, `overlay`, `json`, or another that the server has.
        options: see `SegmentOptions`. Raises: FcnError.
        """
        call = call_of(file_bytes(image), output, options)

        def ask(left_s: float) -> RawReply:
            return self._transport.segment(within(call, left_s))

        reply, attempts = self._patiently(total_s(options, self._timeout_s), ask)
        return result_of(output, reply, attempts)

    @overload
    def segment_many(
        self,
        images: Iterable[I],
        output: PictureOutput = "label_map",
        *,
        in_flight: int = 4,
        ordered: bool = True,
        progress: bool = False,
        **options: Unpack[SegmentOptions],
    ) -> Iterator[Outcome[I, UInt8Array]]: ...

    @overload
    def segment_many(
        self,
        images: Iterable[I],
        output: Literal["json"],
        *,
        in_flight: int = 4,
        ordered: bool = True,
        progress: bool = False,
        **options: Unpack[SegmentOptions],
    ) -> Iterator[Outcome[I, dict[str, Any]]]: ...

    @overload
    def segment_many(
        self,
        images: Iterable[I],
        output: str,
        *,
        in_flight: int = 4,
        ordered: bool = True,
        progress: bool = False,
        **options: Unpack[SegmentOptions],
    ) -> Iterator[Outcome[I, Any]]: ...

    def segment_many(
        self,
        images: Iterable[I],
        output: str = "label_map",
        *,
        in_flight: int = 4,
        ordered: bool = True,
        progress: bool = False,
        **options: Unpack[SegmentOptions],
    ) -> Iterator[Outcome[I, Any]]:
        """Many pictures, `in_flight` of them at a time; `images` is read as there is room.

        Yields them in their order, or (`ordered=False`) as they finish. One that fails is an
        outcome with its `error`; the others go on. progress: a bar on stderr, with tqdm.
        """

        def work(index: int, image: I) -> Outcome[I, Any]:
            try:
                return Outcome(index, image, self.segment(image, output, **options))
            except FcnError as error:
                return Outcome(index, image, error=error)

        with progress_bar(progress, length(images)) as bar:
            for outcome in on_threads(work, images, in_flight, ordered):
                bar.update()
                yield outcome

    def segment_stream(
        self,
        images: Iterable[I],
        output: str = "label_map",
        *,
        window: int = 16,
        ordered: bool = False,
        progress: bool = False,
        **options: Unpack[SegmentOptions],
    ) -> Iterator[Outcome[I, Any]]:
        """Many pictures over one gRPC call (`SegmentStream`), for a camera's or a video's frames.

        `images` is read on a thread of its own, never further than `window` pictures ahead of what
        was yielded; a picture without its answer goes over a new call when one breaks. Yields
        them as they finish, or (`ordered`) in their order. One that fails is an outcome with its
        `error`. options: of every picture; `deadline_ms` and `timeout_s` count from when it was
        read, `request_id` is the call's: a picture's is `<request_id>/<index>`.

        Raises: UnusableInput over REST; NotAuthenticated, NotAllowed or ServerError (501) where no
        picture could be served; what `images` raises.
        """
        flow: Flow[I] = self._flow(output, options, ordered)
        with (
            progress_bar(progress, length(images)) as bar,
            closing(stream.on_threads(self._transport.stream, images, flow, window)) as ends,
        ):
            for settled in ends:
                bar.update()
                yield stream_outcome(output, settled)

    def models(self) -> tuple[Model, ...]:
        """What the server holds, by name. Raises: FcnError."""
        return self._patiently(self._timeout_s, self._transport.models)[0]

    def ready(self) -> bool:
        """Whether the server wants requests now; False, too, when it cannot be reached."""
        try:
            return self._transport.ready(min(self._timeout_s, PROBE_S))
        except FcnError:
            return False

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _patiently(self, seconds: float, ask: Callable[[float], T]) -> tuple[T, int]:
        """The answer and the number of attempts it took. Raises: FcnError."""
        patience = Patience(self._retry, seconds)
        while True:
            left_s = patience.begin()
            try:
                return ask(left_s), patience.attempts
            except FcnError as error:
                wait_s = patience.wait_s(error)
            self._sleep(wait_s)
