"""Makes one unary gRPC call, with asyncio or with threads, which grpc wants written differently."""

from __future__ import annotations

from typing import Any

import grpc

from fcn_client.grpc_messages import Metadata, failure


async def async_unary(
    method: Any, request: Any, timeout_s: float, metadata: Metadata, request_id: str = ""
) -> tuple[Any, Any]:
    """Returns the response and the trailing metadata. Raises: FcnError."""
    call = method(request, timeout=timeout_s, metadata=metadata)
    try:
        return await call, await call.trailing_metadata()
    except grpc.RpcError as error:
        raise failure(error, request_id) from error


def unary(
    method: Any, request: Any, timeout_s: float, metadata: Metadata, request_id: str = ""
) -> tuple[Any, Any]:
    """Returns the response and the trailing metadata. Raises: FcnError."""
    try:
        response, call = method.with_call(request, timeout=timeout_s, metadata=metadata)
    except grpc.RpcError as error:
        raise failure(error, request_id) from error
    return response, call.trailing_metadata()
