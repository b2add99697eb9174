"""Model repositories whose files tell their label, and a segmenter that answers from one.

A file's label is told by its bias: RED says 0 everywhere, GREEN 1, BLUE 2.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from service.core.segmenter import Segmenter
from service.core.types import SegmentOptions
from tests import drawing
from tests.drawing import read_png
from tests.waiting import soon

IMAGE = drawing.png(np.full((5, 7, 3), 100, np.uint8))
OPTIONS = SegmentOptions()
RED, GREEN, BLUE = ((300, 0, 0), (0, 300, 0), (0, 0, 300))


async def label(segmenter: Segmenter, model: str | None = None, version: str | None = None) -> int:
    """Returns the class that the version answering gives every pixel."""
    reply = await segmenter.segment(IMAGE, replace(OPTIONS, model=model, version=version))
    (found,) = set(read_png(reply.body).ravel().tolist())
    return int(found)


def states(segmenter: Segmenter) -> dict[str, str]:
    return {f"{e.name}/{e.version}": str(e.state) for e in segmenter.index()}


def reason(segmenter: Segmenter, version: str, name: str = "tiny") -> str:
    return next(e.reason for e in segmenter.index() if (e.name, e.version) == (name, version))


def put(repository: Path, source: Path, version: int, name: str = "tiny") -> Path:
    """Moves a file into its place, as whoever publishes a model should."""
    path = repository / name / str(version) / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, path.with_name("incoming"))
    return path.with_name("incoming").replace(path)


def write_broken(repository: Path, version: int, name: str = "tiny") -> Path:
    path = repository / name / str(version) / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not a model")
    return path


@asynccontextmanager
async def under_load(segmenter: Segmenter, callers: int = 4) -> AsyncIterator[list[int]]:
    """Sends without a pause; yields the labels of the answers. Any failure is raised."""
    labels: list[int] = []
    over = asyncio.Event()

    async def call() -> None:
        while not over.is_set():
            labels.append(await label(segmenter))

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(call())
        yield labels
        over.set()


def device_threads() -> int:
    return sum(thread.name.startswith("infer-") for thread in threading.enumerate())


async def until_all(labels: list[int], wanted: int) -> None:
    """Waits until more answers have come, and the last are all `wanted`."""
    labels.clear()
    await soon(lambda: len(labels) >= 20 and set(labels[-10:]) == {wanted})
