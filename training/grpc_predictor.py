"""A running server as a predictor, over gRPC `segmentation.v1`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc

from fcn_client.stubs import segmentation_pb2 as pb
from fcn_client.stubs import segmentation_pb2_grpc as pb_grpc
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

T = TypeVar("T")

_CONNECT_S = 10.0


class GrpcPredictor:
    """`Segment` with the image file's own bytes: the server's decoding is measured too."""

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None) -> None:
        """`url`: grpc://host:port, without TLS. `api_key`: sent with every call, as it is: not over
        a network that others can listen to.

        Raises: ServerError if the server cannot be reached or has no such model.
        """
        self.url = url
        self._api_key = api_key
        self._metadata: tuple[tuple[str, str], ...] = (
            () if api_key is None else (("authorization", f"Bearer {api_key}"),)
        )
        self._channel = grpc.insecure_channel(
            urlsplit(url).netloc,
            # The label map of a large picture is above gRPC's limit of 4 MB.
            options=[("grpc.max_receive_message_length", -1)],
        )
        self._stub = pb_grpc.SegmentationStub(self._channel)
        try:
            self.model = choose_model(self._models(), model, url)
        except ServerError:
            self.close()
            raise

    def __call__(self, path: Path, /) -> Pixels:
        """Raises: ServerError."""
        request = pb.SegmentRequest(
            image=path.read_bytes(),
            model=self.model.name,
            version=self.model.version,
            output=pb.OUTPUT_LABEL_MAP,
        )
        try:
            reply = with_patience(
                lambda: self._call(
                    lambda: self._stub.Segment(request, timeout=TIMEOUT_S, metadata=self._metadata)
                )
            )
        except ServerError as error:
            raise ServerError(f"{path}: {error}") from error
        return read_label_map(reply.body, self.url)

    def close(self) -> None:
        self._channel.close()

    def _models(self) -> list[ServedModel]:
        """Of each model the version that will answer."""
        listing = self._call(
            lambda: self._stub.ListModels(
                pb.ListModelsRequest(), timeout=_CONNECT_S, metadata=self._metadata
            )
        )
        # Versions come oldest first, and the newest ready one answers.
        newest = {
            entry.name: ServedModel(
                name=entry.name,
                version=entry.version,
                is_default=entry.is_default,
                class_names=tuple(info.name for info in entry.classes),
            )
            for entry in sorted(listing.models, key=lambda entry: entry.is_default)
            if entry.state == "ready"
        }
        return list(newest.values())

    def _call(self, call: Callable[[], T]) -> T:
        """Raises: ServerError; Busy when the server asks to come back."""
        try:
            return call()
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            if code is grpc.StatusCode.UNAUTHENTICATED:
                raise refused_key(self.url, self._api_key) from error
            message = f"{self.url} answered {code.name}: {details}"
            wait_s = _pushback_s(error)
            if wait_s is not None:
                raise Busy(message, wait_s) from error
            if code is grpc.StatusCode.UNAVAILABLE:
                raise ServerError(f"cannot reach {self.url}: {details}") from error
            raise ServerError(message) from error


def _pushback_s(error: grpc.RpcError) -> float | None:
    """`grpc-retry-pushback-ms` in seconds; None where it is absent or says not to retry.

    Source: gRPC proposal A6, client retries.
    """
    metadata: Any = error.trailing_metadata() or ()  # pairs, which the stubs do not say
    for key, value in metadata:
        if key == "grpc-retry-pushback-ms" and str(value).isdigit():
            return int(value) / 1000
    return None
