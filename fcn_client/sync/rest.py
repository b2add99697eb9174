# Made from fcn_client/aio/rest.py by `make sync`: change that.
"""Speaks REST with httpx: each client keeps one pool of connections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn
from urllib.parse import urlsplit

import httpx

from fcn_client import http_messages as messages
from fcn_client.request import at_ip, is_this_machine
from fcn_client.trust import Trust
from fcn_client.types import Call, Model, RawReply


class RestTransport:
    """Sends the calls of one client over HTTP."""

    def __init__(
        self, url: str, headers: Mapping[str, str], trust: Trust, ip: str | None = None
    ) -> None:
        """ip: where to connect to, in place of what the name of the host stands for.

        Raises: InvalidInput where the environment names a proxy that cannot be used.
        """
        limits, verify = messages.LIMITS, messages.context_of(trust)
        self._url, self._extensions = url, {}
        # Given a transport, httpx leaves the environment's proxies alone.
        direct = None
        if ip is not None:
            headers = {**headers, "Host": urlsplit(url).netloc}
            self._extensions = {"sni_hostname": urlsplit(url).hostname}
            url = at_ip(url, ip)
        if ip is not None or is_this_machine(url):
            direct = httpx.HTTPTransport(verify=verify, limits=limits)
        try:
            self._client = httpx.Client(
                base_url=url,
                headers=dict(headers),
                verify=verify,
                limits=limits,
                transport=direct,
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise messages.no_proxy(error) from error

    def segment(self, call: Call) -> RawReply:
        response = self._send(messages.segment_request(self._client, call))
        return messages.reply_of(response, call.request_id)

    def stream(self, request_id: str, *_: object) -> NoReturn:
        raise messages.no_streams(self._url)

    def models(self, timeout_s: float) -> tuple[Model, ...]:
        request = self._client.build_request("GET", "v1/models", timeout=timeout_s)
        return messages.models_of(self._send(request))

    def ready(self, timeout_s: float) -> bool:
        request = self._client.build_request("GET", "readyz", timeout=timeout_s)
        return (self._send(request)).status_code == httpx.codes.OK

    def close(self) -> None:
        self._client.close()

    def _send(self, request: httpx.Request) -> httpx.Response:
        request.extensions = {**request.extensions, **self._extensions}
        try:
            return self._client.send(request)
        except httpx.HTTPError as error:
            raise messages.failure(error, self._url) from error
