"""Asks a running server as a predictor, through the client that every user has."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from fcn_client import (
    FcnClient,
    FcnConnectionError,
    FcnError,
    FcnTimeoutError,
    NotAllowed,
    NotAuthenticated,
)
from fcn_client.predict import RemoteLabeller
from training.datasets.base import UInt8Array
from training.evaluation.evaluate import EvaluationError, ImageFailed, ServerLost

DEADLINE_S = 120.0
"""Limit for one answer: a large image on a busy CPU may take long, a hung server is no answer."""

_ATTEMPTS = 2
"""Attempts for an image that is not answered in time: the next attempt may meet a less busy moment.
What else can be retried the client does."""


class ServerPredictor:
    """Sends the image files' own bytes, so that the server's decoding is measured too."""

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """Connect and choose the model. `api_key`: sent as it is, so not without TLS over a network
        that others can listen to. `deadline_s`: for one image, with what the client retries.

        Raises: FcnError if the server cannot be reached or has no such model, EvaluationError if
        it wants another key.
        """
        client = FcnClient(url, timeout_s=deadline_s, api_key=api_key)
        try:
            self._labeller = RemoteLabeller(client, model)
        except NotAuthenticated as error:
            raise EvaluationError(
                f"{url} answers {error}: give a file with a valid key as --api-key-file"
            ) from error
        self.name = self._labeller.name
        self.class_names = tuple(entry.name for entry in self._labeller.classes)

    def __call__(self, path: Path, /) -> UInt8Array:
        """Ask for one image. Raises: ImageFailed, ServerLost."""
        body = path.read_bytes()
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                answer = self._labeller(body)
                break
            except (FcnConnectionError, NotAuthenticated, NotAllowed) as error:
                raise ServerLost(str(error)) from error
            except FcnTimeoutError as error:
                if attempt == _ATTEMPTS:
                    raise ImageFailed(f"{error} (asked {attempt} times; see --deadline)") from error
            except FcnError as error:
                raise ImageFailed(str(error)) from error
        with Image.open(io.BytesIO(answer)) as label_map:  # the client has looked at it
            return np.array(label_map)

    def close(self) -> None:
        """Give the connections back."""
        self._labeller.close()
