"""What asking a server over REST and over gRPC has in common."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from training.datasets.base import Pixels
from training.evaluate import EvaluationError

T = TypeVar("T")

TIMEOUT_S = 120.0
"""For one answer: a large picture on a busy CPU may take long, a hung server is no answer."""

MAX_ATTEMPTS = 8
MAX_WAIT_S = 10.0


class ServerError(EvaluationError):
    """The server cannot be reached, refuses, or its answer is no label map."""


class Busy(ServerError):
    """The server asks to come back after `wait_s` seconds."""

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


def refused_key(server: str, api_key: str | None) -> ServerError:
    """What to say when the server answers that the caller is not authenticated."""
    if api_key is None:
        return ServerError(f"{server} wants an API key: give a file with one as --api-key-file")
    return ServerError(
        f"{server} does not take this API key: ask for one that is valid, and give it as "
        "--api-key-file"
    )


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version of one model; `is_default`: answers requests that name none."""

    name: str
    version: str
    is_default: bool
    class_names: tuple[str, ...]


def choose_model(models: Iterable[ServedModel], name: str | None, server: str) -> ServedModel:
    """The model that will answer. `models`: one version of each, the one it answers with.

    Raises: ServerError naming the models there are.
    """
    known = list(models)
    for model in known:
        if model.name == name or (name is None and model.is_default):
            return model
    there = ", ".join(model.name for model in known) or "none"
    if name is None:
        raise ServerError(f"{server} has no default model: name one with --model ({there})")
    raise ServerError(f"{server} has no model {name!r}: it has {there}")


def with_patience(ask: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """`ask`, again and again while the server is Busy. Raises: Busy after MAX_ATTEMPTS."""
    for _ in range(MAX_ATTEMPTS - 1):
        try:
            return ask()
        except Busy as busy:
            sleep(min(max(busy.wait_s, 0.1), MAX_WAIT_S))
    return ask()


def read_label_map(body: bytes, source: str) -> Pixels:
    """uint8 [H,W] from an 8-bit palette PNG. Raises: ServerError."""
    try:
        with Image.open(io.BytesIO(body), formats=("PNG",)) as picture:
            mode, pixels = picture.mode, np.array(picture)
    except (OSError, SyntaxError) as error:
        raise ServerError(f"{source} answered with something that is no PNG") from error
    if mode not in ("P", "L"):
        raise ServerError(f"{source} answered with a {mode} picture, not with a label map")
    return pixels
