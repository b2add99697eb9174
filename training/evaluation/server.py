"""Scores a running server, through the client that every user has.

Nothing else in training needs the client.
"""

from __future__ import annotations

import io
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from fcn_client import (
    FcnClient,
    FcnConnectionError,
    FcnError,
    NotAllowed,
    NotAuthenticated,
)
from fcn_client.predict import RemoteLabeller
from fcn_client.sync.window import in_window
from fcn_client.trust import TlsFiles
from training.datasets import DatasetError, SegmentationDataset
from training.datasets.base import UInt8Array
from training.evaluation.audit import Audit
from training.evaluation.evaluate import (
    Evaluation,
    EvaluationError,
    Failure,
    ImageFailed,
    ServerLost,
    count_image,
)
from training.evaluation.metrics import Confusion, ScoreError
from training.evaluation.predictors import FilePredictor


class ServerPredictor:
    """Sends the image files' own bytes, so that the server's decoding is measured too."""

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        tls: TlsFiles | None = None,
        deadline_s: float,
    ) -> None:
        """Connect and choose the model. `api_key`: sent as it is, so not without TLS over a network
        that others can listen to. `deadline_s`: for one image, with what the client retries.

        Raises: FcnError if the server cannot be reached or has no such model, EvaluationError if
        it wants another key.
        """
        client = FcnClient(url, timeout_s=deadline_s, api_key=api_key, **(tls or {}))
        try:
            # Whole images at their own size are scored, whatever size a server would choose.
            self._labeller = RemoteLabeller(client, model, deadline_s=deadline_s, scale="none")
        except NotAuthenticated as error:
            raise EvaluationError(
                f"{url} answers {error}: give a file with a valid key as --api-key-file"
            ) from error
        self.name = self._labeller.name
        self.class_names = tuple(entry.name for entry in self._labeller.classes)

    def __call__(self, path: Path, /) -> UInt8Array:
        """Ask for one image. Raises: ImageFailed, ServerLost."""
        body = path.read_bytes()
        try:
            answer = self._labeller(body)
        except (FcnConnectionError, NotAuthenticated, NotAllowed) as error:
            raise ServerLost(str(error)) from error
        except FcnError as error:
            raise ImageFailed(str(error)) from error
        with Image.open(io.BytesIO(answer)) as label_map:  # the client has looked at it
            return np.array(label_map)

    def close(self) -> None:
        """Give the connections back."""
        self._labeller.close()


def evaluate_files(
    predict: FilePredictor,
    data: SegmentationDataset,
    *,
    in_flight: int = 4,
    progress: bool = True,
    audit: Audit | None = None,
) -> Evaluation:
    """Count as `evaluate` does, for a predictor that decodes the image files itself.

    `in_flight`: how many files are asked for at a time; `predict` is called from that many
    threads. An image that fails, its label, or its answer is reported and not scored; after
    ServerLost the rest is not asked for: an hour of answers is worth more than none.
    Raises: EvaluationError, also if no image was scored.
    """
    confusion = Confusion(data.info.head_sizes)
    failures: list[Failure] = []
    scored = 0

    def work(index: int, _item: int) -> tuple[UInt8Array, UInt8Array, float] | Exception:
        try:
            target, started = data.target(index), time.perf_counter()
            return target, predict(data.pairs[index][0]), time.perf_counter() - started
        except (ImageFailed, ServerLost, DatasetError, OSError) as error:
            return error

    answers = in_window(work, range(len(data)), in_flight, ordered=True)
    with (
        closing(answers),
        tqdm(total=len(data), desc=data.split, unit="image", disable=not progress) as bar,
    ):
        for index, answer in enumerate(answers):
            image = data.pairs[index][0]
            bar.update()
            if isinstance(answer, tuple):
                try:
                    target, prediction, seconds = answer
                    count_image(confusion, image, target, prediction)
                    scored += 1
                    if audit is not None:
                        audit.add(index, data.info.head_sizes, target, prediction, seconds)
                except (EvaluationError, ScoreError) as error:
                    answer = error
            if isinstance(answer, Exception):
                failures.append(Failure(image, str(answer)))
                if isinstance(answer, ServerLost):
                    break
    if not scored:
        raise EvaluationError(f"no image was scored: {failures[0].image}: {failures[0].error}")
    not_asked = len(data) - scored - len(failures)
    return Evaluation(confusion, scored, tuple(failures), not_asked)
