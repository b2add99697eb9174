"""Handles gRPC calls inside a `Call`: their id, key, message and error.

Errors travel as status details (google.rpc.Status with ErrorInfo and, where a retry helps,
RetryInfo), beside the sentence that every gRPC client shows.

Every method is a stream here, which on the wire is the same as a unary call: so that a call can be
refused before its message is read, which may be large, and timed while it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status

from service.api.call import HEADER, Call, Calls, Outcome
from service.api.grpc.connections import Connections, Context
from service.api.grpc.messages import MAX_STRUCTURE_BYTES, Bulk, parse
from service.errors import InvalidParameter, UnknownMethod, let_go
from service.tracing import Attributes

ERROR_DOMAIN: Final = "fcn-serve"
"""Says in ErrorInfo whose reasons they are. Source: google/rpc/error_details.proto."""
PUSHBACK: Final = "grpc-retry-pushback-ms"
"""Trailing metadata that gRPC's own retry policy obeys; negative means do not retry.

Source: gRPC proposal A6, client retries.
"""

Admit = Callable[[Call, str | None, str | None], None]
"""Lets a call in, told the metadata `authorization` and `x-api-key`, or raises ServiceError."""
Write = Callable[..., Awaitable[None]]
"""Sends a message of a stream, after those before it and, if one is given, after an awaitable."""
T = TypeVar("T")
M = TypeVar("M", bound=Message)
Read = Callable[[], Awaitable[tuple[M, int] | None]]
"""Reads the next message, and how many bytes it has; None at the end of the stream. Raises:
InvalidParameter, MessageTooLarge, Overloaded, UploadTooSlow."""


async def handle(
    calls: Calls,
    method: str,
    context: Context,
    work: Callable[[Call], Awaitable[T]],
    admit: Admit = Call.authenticate,
    service: str = "",
) -> T:
    """Lets the call in and returns what `work` does, or aborts with its error as status details.

    service: the full name of that which has the method.
    """
    metadata = {k: v for k, v in context.invocation_metadata() or () if isinstance(v, str)}
    offered_id = metadata.get(HEADER)
    call = calls.begin(
        "grpc",
        method,
        offered_id,
        time_left=context.time_remaining,
        address=_address(context.peer()),
        carrier=metadata,
        describe=partial(_described, f"{service}/{method}"),
    )
    context.set_trailing_metadata(((HEADER, call.id),))
    try:
        with call:
            admit(call, metadata.get("authorization"), metadata.get("x-api-key"))
            try:
                return await work(call)
            except aio.InternalError:
                # A message was written to a call that had ended meanwhile, at its deadline, say.
                raise asyncio.CancelledError from None
    except BaseException as error:
        if (outcome := call.outcome) is not None:
            let_go(error)
            try:
                await context.abort(outcome.status.code, outcome.text, _trailers(outcome))
            except aio.InternalError:  # the caller left meanwhile, which is no error of ours
                raise asyncio.CancelledError from None
        raise


class Handlers:
    """Makes the handlers of one service's methods."""

    def __init__(self, calls: Calls, connections: Connections, service: str = "") -> None:
        """service: its full name."""
        self._calls = calls
        self._connections = connections
        self._service = service

    def upload(
        self,
        method: str,
        request: type[M],
        work: Callable[[Call, Read[M]], Awaitable[Message]],
        admit: Admit = Call.authenticate,
        *,
        max_bytes: int,
        bulk: Bulk,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Makes the handler of a call that reads its one message itself.

        max_bytes: of the message. bulk: its fields that may be large.
        """
        timeout_s = self._connections.uploads.timeout_s

        async def handler(_: AsyncIterator[bytes], context: Context) -> bytes:
            self._connections.knows(context)
            read = self._reader(context, request, max_bytes, bulk, timeout_s)
            answer = await handle(
                self._calls, method, context, lambda call: work(call, read), admit, self._service
            )
            # Once, by us: a message is serialized to be measured, too.
            raw = answer.SerializeToString()
            self._connections.ends(context, len(raw))
            return raw

        return grpc.stream_unary_rpc_method_handler(handler)

    def unary(
        self,
        method: str,
        request: type[M],
        work: Callable[[Call, M], Awaitable[Message]],
        admit: Admit = Call.authenticate,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Makes the handler of a call with one small message each way."""

        async def read_and_work(call: Call, read: Read[M]) -> Message:
            return await work(call, (await read_single_message(read, request))[0])

        return self.upload(
            method,
            request,
            read_and_work,
            admit,
            max_bytes=MAX_STRUCTURE_BYTES,
            bulk={},
        )

    def stream(
        self,
        method: str,
        request: type[M],
        work: Callable[[Call, Read[M], Write], Awaitable[None]],
        *,
        max_bytes: int,
        bulk: Bulk,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Makes the handler of a call that reads and writes as it goes."""
        connections = self._connections

        async def handler(_: AsyncIterator[bytes], context: Context) -> None:
            connections.knows(context)
            read = self._reader(context, request, max_bytes, bulk)

            sending = asyncio.Lock()

            async def write(answer: Message, turn: Awaitable[None] | None = None) -> None:
                raw = answer.SerializeToString()
                with connections.owes(context, len(raw)):
                    if turn is not None:
                        await turn
                    async with sending:
                        await context.write(raw)

            async def read_and_write(call: Call) -> None:
                try:
                    await work(call, read, write)
                finally:
                    connections.ends(context, 0)

            await handle(self._calls, method, context, read_and_write, Call.identify, self._service)

        return grpc.stream_stream_rpc_method_handler(handler)

    def unknown(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Answers methods that are not there, and counts them under one name."""

        async def refuse(call: Call) -> bytes:
            raise UnknownMethod("there is no such method: see grpc.reflection for those there are")

        async def handler(_: AsyncIterator[bytes], context: Context) -> bytes:
            self._connections.knows(context)
            return await handle(self._calls, "other", context, refuse)

        return _Any(grpc.stream_unary_rpc_method_handler(handler))

    def _reader(
        self,
        context: Context,
        request: type[M],
        max_bytes: int,
        bulk: Bulk,
        timeout_s: float | None = None,
    ) -> Read[M]:
        connections = self._connections

        async def read() -> tuple[M, int] | None:
            raw = await connections.read(context, max_bytes, timeout_s)
            if raw is None:
                return None
            return await parse(raw, request, connections.uploads, max_bytes, bulk)

        return read


class _Any(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # no generic at run time
    """Has one handler for all methods."""

    def __init__(self, handler: grpc.RpcMethodHandler[Any, Any]) -> None:
        self._handler = handler

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any]:
        return self._handler


async def read_single_message(read: Read[M], kind: type[M]) -> tuple[M, int]:
    """Reads the one message of a call that is a stream here. Raises: InvalidParameter without any,
    and what `read` raises."""
    found = await read()
    if found is None:
        raise InvalidParameter(f"the call has no message: send one {kind.DESCRIPTOR.name}")
    return found


def _described(method: str) -> Attributes:
    """Lists what gRPC knows. Source: OpenTelemetry, semantic conventions for RPC."""
    return {"rpc.system.name": "grpc", "rpc.method": method.lstrip("/")}


def _address(peer: str) -> str:
    """Reads `ipv4:127.0.0.1:5000` -> `127.0.0.1`; `ipv6:%5B::1%5D:5000` -> `::1`."""
    return unquote(peer.partition(":")[2]).rpartition(":")[0].strip("[]")


def _trailers(outcome: Outcome) -> tuple[tuple[str, str | bytes], ...]:
    """Prints the outcome as gRPC's trailing metadata: status details, id, and when to retry."""
    status = status_pb2.Status(code=outcome.status.code.value[0], message=outcome.text)
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=outcome.status.kind, domain=ERROR_DOMAIN)
    )
    found: list[tuple[str, str | bytes]] = [(HEADER, outcome.request_id)]
    if outcome.wait_s is not None:
        status.details.add().Pack(
            error_details_pb2.RetryInfo(retry_delay=Duration(seconds=outcome.wait_s))
        )
        found.append((PUSHBACK, str(1000 * outcome.wait_s)))
    return (*found, *rpc_status.to_status(status).trailing_metadata)
