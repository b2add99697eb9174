"""Handles gRPC calls inside a `Call`: their id, key, message and error.

Errors travel as status details (google.rpc.Status with ErrorInfo and, where a retry helps,
RetryInfo), beside the sentence that every gRPC client shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status

from service.api.call import HEADER, Call, Calls, Outcome
from service.errors import InvalidParameter

ERROR_DOMAIN: Final = "fcn-serve"
"""Says in ErrorInfo whose reasons they are. Source: google/rpc/error_details.proto."""
PUSHBACK: Final = "grpc-retry-pushback-ms"
"""Trailing metadata that gRPC's own retry policy obeys; negative means do not retry.

Source: gRPC proposal A6, client retries.
"""

Context = aio.ServicerContext[Any, Any]
Admit = Callable[[Call, str | None, str | None], None]
"""Lets a call in, told the metadata `authorization` and `x-api-key`, or raises ServiceError."""
T = TypeVar("T")
M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Message)


async def handle(
    calls: Calls,
    method: str,
    context: Context,
    work: Callable[[Call], Awaitable[T]],
    admit: Admit = Call.authenticate,
) -> T:
    """Lets the call in and returns what `work` does, or aborts with its error as status details."""
    metadata = {k: v for k, v in context.invocation_metadata() or () if isinstance(v, str)}
    offered_id = metadata.get(HEADER)
    call = calls.begin(
        "grpc",
        method,
        offered_id,
        time_left=context.time_remaining,
        address=_address(context.peer()),
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
    except BaseException:
        if (outcome := call.outcome) is not None:
            try:
                await context.abort(outcome.status.code, outcome.text, _trailers(outcome))
            except aio.InternalError:  # the caller left meanwhile, which is no error of ours
                raise asyncio.CancelledError from None
        raise


def stream_unary(
    calls: Calls,
    method: str,
    request: type[M],
    response: type[R],
    work: Callable[[Call, AsyncIterator[M]], Awaitable[R]],
    admit: Admit = Call.authenticate,
) -> grpc.RpcMethodHandler[Any, Any]:
    """Makes the handler of a call that reads its one message itself.

    On the wire it is a unary call. Here it is a stream of requests: so that a call can be refused
    before its message is read, which may be large, and timed while it is.
    """

    async def handler(requests: AsyncIterator[M], context: Context) -> R:
        return await handle(calls, method, context, lambda call: work(call, requests), admit)

    return grpc.stream_unary_rpc_method_handler(
        handler,
        request_deserializer=request.FromString,
        response_serializer=response.SerializeToString,
    )


def unary(
    calls: Calls,
    method: str,
    request: type[M],
    response: type[R],
    work: Callable[[Call, M], Awaitable[R]],
    admit: Admit = Call.authenticate,
) -> grpc.RpcMethodHandler[Any, Any]:
    """Makes the handler of a call with one small message each way."""

    async def read_and_work(call: Call, requests: AsyncIterator[M]) -> R:
        return await work(call, await read_single_message(requests, request))

    return stream_unary(calls, method, request, response, read_and_work, admit)


def stream_stream(
    calls: Calls,
    method: str,
    request: type[M],
    response: type[R],
    work: Callable[[Call, Context], Awaitable[None]],
) -> grpc.RpcMethodHandler[Any, Any]:
    """Makes the handler of a call that reads and writes on gRPC's context, as it goes."""

    async def handler(_: AsyncIterator[M], context: Context) -> None:
        await handle(calls, method, context, lambda call: work(call, context), Call.identify)

    return grpc.stream_stream_rpc_method_handler(
        handler,
        request_deserializer=request.FromString,
        response_serializer=response.SerializeToString,
    )


async def read_single_message(requests: AsyncIterator[M], kind: type[M]) -> M:
    """Reads the one message of a call that is a stream here.

    Raises: InvalidParameter without any, or when it is none of `kind`.
    """
    try:
        async for request in requests:
            return request
    except DecodeError:
        raise malformed(kind) from None
    raise InvalidParameter(f"the call has no message: send one {kind.DESCRIPTOR.name}")


def malformed(kind: type[Message]) -> InvalidParameter:
    """Refuses bytes that are no message of `kind`."""
    descriptor = kind.DESCRIPTOR
    return InvalidParameter(
        f"the message is no {descriptor.name}: use stubs generated from {descriptor.file.name}"
    )


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
