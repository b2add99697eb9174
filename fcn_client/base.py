"""What the client for threads and the one for asyncio have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, TypeVar

from fcn_client.flow import Flow
from fcn_client.request import headers_of, is_grpc
from fcn_client.retry import RetryPolicy
from fcn_client.types import SegmentOptions

PROBE_S: Final = 5.0
T = TypeVar("T")


class BaseClient(Generic[T]):
    """A server behind one address; `T` is the kind of transport, REST or gRPC."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 60.0,
        retry: RetryPolicy | None = None,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """url: http://, https://, grpc:// or grpcs://host:port, for REST behind a prefix with a
        path. timeout_s: for a request with its retries, unless it brings a `deadline_ms`.
        api_key: for a server that wants one; sent as it is, so not without TLS over a network that
        others use. headers: sent with every request, for a proxy that wants them.

        Raises: UnusableInput. The server is not asked yet.
        """
        self.url = url
        self._timeout_s = timeout_s
        self._retry = retry or RetryPolicy()
        # Imported as needed: REST works without grpcio, gRPC without httpx.
        transport = self._grpc() if is_grpc(url) else self._rest()
        self._transport = transport(url, headers_of(headers, api_key))

    def _rest(self) -> Callable[[str, Mapping[str, str]], T]:
        raise NotImplementedError

    def _grpc(self) -> Callable[[str, Mapping[str, str]], T]:
        raise NotImplementedError

    def _flow(self, output: str, options: SegmentOptions, ordered: bool) -> Flow[Any]:
        """The pictures of one `segment_stream`. Raises: UnusableInput."""
        return Flow(output, options, self._retry, self._timeout_s, ordered)
