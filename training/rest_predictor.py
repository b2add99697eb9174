"""A running server as a predictor, over REST."""

from __future__ import annotations

import http.client
import json
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from training.datasets.base import Pixels
from training.server import (
    TIMEOUT_S,
    Busy,
    ServedModel,
    ServerError,
    choose_model,
    read_label_map,
    refused_key,
    with_patience,
)

_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
}


class RestPredictor:
    """`POST /segment` with the image file's own bytes: the server's decoding is measured too.

    Every thread has one connection, kept open between images until `close`.
    """

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None) -> None:
        """`url`: http:// or https://, with the path before `/segment` if there is one.
        `api_key`: sent with every request, as it is: not without TLS over a network that others
        can listen to.

        Raises: ServerError if the server cannot be reached or has no such model.
        """
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        self._connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._host = parts.netloc
        self._prefix = quote(parts.path.rstrip("/"), safe="/%")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._api_key = api_key
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []
        try:
            self.model = choose_model(self._models(), model, self.url)
        except ServerError:
            self.close()
            raise
        query = urlencode(
            # The version too: one that goes live meanwhile must not mix with this one.
            {"model": self.model.name, "version": self.model.version, "output": "label_map"}
        )
        self._target = f"{self._prefix}/segment?{query}"

    def __call__(self, path: Path, /) -> Pixels:
        """Raises: ServerError."""
        body = path.read_bytes()
        headers = {"Content-Type": _TYPES.get(path.suffix.lower(), "application/octet-stream")}
        try:
            reply = with_patience(lambda: self._ask("POST", self._target, body, headers))
        except ServerError as error:
            raise ServerError(f"{path}: {error}") from error
        return read_label_map(reply, self.url)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def _models(self) -> list[ServedModel]:
        reply = self._ask("GET", f"{self._prefix}/v1/models")
        try:
            # A model of which no version could be loaded has no default one.
            return [_served(m) for m in json.loads(reply)["models"] if m["default_version"]]
        except (KeyError, TypeError, ValueError, StopIteration) as error:
            raise ServerError(f"{self.url}/v1/models is no list of models: {error!r}") from error

    def _ask(
        self, method: str, target: str, body: bytes | None = None, headers: Any = None
    ) -> bytes:
        """The body of a 200. A connection that broke is opened once more: servers close idle
        ones. Raises: ServerError, Busy."""
        key = {} if self._api_key is None else {"Authorization": f"Bearer {self._api_key}"}
        kept = getattr(self._local, "connection", None)
        for connection in (kept, None) if kept is not None else (None,):
            if connection is None:
                connection = self._connect(self._host, timeout=TIMEOUT_S)
                self._local.connection = connection
                self._connections.append(connection)  # atomic, so threads need no lock
            try:
                connection.request(method, target, body, {**(headers or {}), **key})
                reply = connection.getresponse()
                content = reply.read()
                break
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                self._local.connection = None
                failure = error
        else:
            reason = getattr(failure, "strerror", None) or str(failure) or type(failure).__name__
            raise ServerError(f"cannot reach {self.url}: {reason}") from failure
        if reply.status == http.client.OK:
            return content
        if reply.status == http.client.UNAUTHORIZED:
            raise refused_key(self.url, self._api_key)
        message = _problem(reply.status, content, self.url)
        if reply.status in (429, 503):
            raise Busy(message, _seconds(reply.getheader("Retry-After")))
        raise ServerError(message)


def _served(model: dict[str, Any]) -> ServedModel:
    """From the listing: the version that answers by default. Raises KeyError, StopIteration."""
    version = next(v for v in model["versions"] if v["version"] == model["default_version"])
    return ServedModel(
        name=model["name"],
        version=version["version"],
        is_default=model["is_default"],
        class_names=tuple(entry["name"] for entry in version["contract"]["classes"]),
    )


def _problem(status: int, content: bytes, url: str) -> str:
    """One line from a problem+json; the status alone from anything else."""
    try:
        problem = json.loads(content)
        return f"{url} answered {status}: {problem['title']}: {problem['detail']}"
    except (KeyError, TypeError, ValueError):
        return f"{url} answered {status} {http.client.responses.get(status, '')}".rstrip()


def _seconds(retry_after: str | None) -> float:
    return float(retry_after) if retry_after and retry_after.isdigit() else 1.0
