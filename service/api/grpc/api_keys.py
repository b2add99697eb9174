"""Who may call what over gRPC, where the server has API keys: seen to before a message is read.

What is not named here as open needs a key.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Final

import grpc
from grpc import aio
from grpc_health.v1 import health

from service.api.grpc.lifecycle import ADMITTED, Admitted, Context, begin, fail
from service.api.keys import Keys, offered
from service.api.stubs import inference_pb2 as oip
from service.errors import NotAuthenticated
from service.telemetry import Telemetry

_OIP: Final = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
OPEN: Final = (
    f"/{health.SERVICE_NAME}/",
    "/grpc.reflection.",
    # What the admin key guards, which see to that themselves.
    *(f"/{_OIP}/{name}" for name in ("RepositoryIndex", "RepositoryModel")),
)
"""How the full names of calls begin that need no key."""


class RpcGate(aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Before every call of the server."""

    def __init__(self, keys: Keys, telemetry: Telemetry) -> None:
        self._keys = keys
        self._telemetry = telemetry

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        method = str(handler_call_details.method)
        handler = await continuation(handler_call_details)
        # There is no handler for a call that does not exist, which gRPC answers.
        if handler is None or method.startswith(OPEN):
            return handler
        metadata = dict(handler_call_details.invocation_metadata or ())
        try:
            caller = self._keys.admit(
                offered(_text(metadata.get("authorization")), _text(metadata.get("x-api-key")))
            )
        except NotAuthenticated as error:
            # Of this kind, a handler is called before the first message is read.
            return grpc.stream_unary_rpc_method_handler(
                partial(self._refuse, method.rpartition("/")[2], error)
            )
        ADMITTED.set(Admitted(self._keys, caller))
        return handler

    async def _refuse(
        self, name: str, error: NotAuthenticated, _: AsyncIterator[bytes], context: Context
    ) -> None:
        record = begin(name, context)
        try:
            await fail(error, record, context)
        finally:
            self._telemetry.finished(record)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
