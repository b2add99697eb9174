"""Answers gRPC calls that another program's server received, by the handlers of `GrpcServer`.

Ray Serve's proxies hold the connections: `add_services` has them take our calls, each message as it
came, and `Relay` answers those, beside the segmenter. What a caller is told is the same as over a
port of our own, but that a proxy does not pass on the deadline of a call, nor, where a stream
ends with an error, its status details.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, NoReturn, Protocol

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2

from service.api.stubs import inference_pb2, segmentation_pb2

_SERVICES: Final = (
    segmentation_pb2.DESCRIPTOR.services_by_name["Segmentation"],
    inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
)
_HANDLERS: Final = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""How gRPC says whether the request and the answer of a method are streams."""


class Method(NamedTuple):
    """Represents a method: its path, and whether its request and its answer are streams."""

    path: str
    name: str
    asks: bool
    answers: bool


class Message(bytes):
    """Holds a message in the shape that a program wants which serializes it itself."""

    def SerializeToString(self) -> bytes:
        return bytes(self)


class Caller(Protocol):
    """Says what the program that received a call must tell of it, and takes how it ends."""

    def peer(self) -> str: ...
    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]: ...
    def set_code(self, code: grpc.StatusCode) -> None: ...
    def set_details(self, details: str) -> None: ...
    def set_trailing_metadata(self, metadata: list[tuple[str, str | bytes]]) -> None: ...


class _Details(NamedTuple):
    """Stands in for grpc.HandlerCallDetails."""

    method: str
    invocation_metadata: tuple[()] = ()


class _AbortError(Exception):
    """Ends a call whose status has been set."""


def methods() -> Iterator[Method]:
    """Lists every method of every service, reflection apart, which a proxy has itself."""
    for service in _SERVICES:
        for method in service.methods:
            path = f"/{service.full_name}/{method.name}"
            yield Method(path, method.name, method.client_streaming, method.server_streaming)


def add_services(servicer: Any, server: Any) -> None:
    """Adds them to a server that finds its own way to who answers: messages are left as they come.

    servicer: not asked. server: as the generated `add_..._to_server` take it.
    """
    for service in _SERVICES:
        found = {
            method.name: _HANDLERS[method.client_streaming, method.server_streaming](servicer)
            for method in service.methods
        }
        handler = grpc.method_handlers_generic_handler(service.full_name, found)
        server.add_generic_rpc_handlers((handler,))


class Relay:
    """Finds the handler of each call and runs it."""

    def __init__(self, handlers: Sequence[grpc.GenericRpcHandler[Any, Any]]) -> None:
        self._handlers = handlers

    async def unary(self, method: Method, message: bytes, caller: Caller) -> Message:
        """Returns the answer; an empty one with an error, which `caller` then has."""
        handler = self._find(method)
        context = _Context(caller, _one(message), _refuse_to_write)
        try:
            answer = await handler.stream_unary(None, context)
            return Message(_serialized(handler, answer))
        except _AbortError:
            return Message()
        finally:
            context.end()

    async def stream(
        self, method: Method, messages: AsyncIterator[bytes], caller: Caller
    ) -> AsyncIterator[Message]:
        """Yields the answers. Raises: RuntimeError with an error, which `caller` then has."""
        handler = self._find(method)
        written: asyncio.Queue[Message] = asyncio.Queue(1)

        async def write(answer: Any) -> None:
            await written.put(Message(_serialized(handler, answer)))

        context = _Context(caller, messages, write)
        running = asyncio.ensure_future(handler.stream_stream(None, context))
        taking = asyncio.ensure_future(written.get())
        try:
            while True:
                await asyncio.wait((running, taking), return_when=asyncio.FIRST_COMPLETED)
                if taking.done():
                    yield taking.result()
                    taking = asyncio.ensure_future(written.get())
                elif written.empty():
                    break
                else:
                    await asyncio.sleep(0)  # it is being handed over
            await running
        except _AbortError as error:
            raise RuntimeError(str(error)) from None
        finally:
            taking.cancel()
            running.cancel()
            context.end()

    def _find(self, method: Method) -> Any:
        details: Any = _Details(method.path)
        found = (handler.service(details) for handler in self._handlers)
        return next(handler for handler in found if handler is not None)


class _Context:
    """Stands in for grpc.aio.ServicerContext, as far as our handlers use it."""

    def __init__(
        self,
        caller: Caller,
        messages: AsyncIterator[bytes],
        write: Callable[[Any], Awaitable[None]],
    ) -> None:
        self._caller = caller
        self._messages = messages
        self._at_the_end: list[Callable[[Any], None]] = []
        self.write = write

    def peer(self) -> str:
        return self._caller.peer()

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        return self._caller.invocation_metadata()

    def time_remaining(self) -> None:
        return None

    def set_trailing_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        self._caller.set_trailing_metadata(list(metadata))

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._at_the_end.append(callback)

    async def read(self) -> Any:
        try:
            return await anext(self._messages)
        except StopAsyncIteration:
            return aio.EOF  # type: ignore[attr-defined]  # stubs lack it

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: Sequence[tuple[str, str | bytes]] = (),
    ) -> NoReturn:
        self._caller.set_code(code)
        self._caller.set_details(details)
        if trailing_metadata:
            self.set_trailing_metadata(trailing_metadata)
        raise _AbortError(details)

    def end(self) -> None:
        for callback in self._at_the_end:
            callback(self)


async def _one(message: bytes) -> AsyncIterator[bytes]:
    yield message


async def _refuse_to_write(answer: Any) -> None:
    raise RuntimeError("a unary call has one answer, which is returned")


def _serialized(handler: Any, answer: Any) -> bytes:
    serialize = handler.response_serializer
    return bytes(answer) if serialize is None else bytes(serialize(answer))
