"""Runs the segmenter without a server, for a program that holds the model itself.

Same code, same answers; the caller's threads wait while an event loop of its own does the work.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
import threading
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from service.config import SegmenterConfig
from service.core.engines.onnx_runtime import open_onnx_runtime
from service.core.segmenter import Segmenter
from service.core.types import ModelStatus, SegmentOptions, SegmentReply, UInt8Array, VersionStatus
from service.errors import ModelLoadError
from service.settings import Settings

T = TypeVar("T")

# The caller bounds what is in flight; a queue that refuses is for strangers.
_PLENTY = 1 << 40


class LocalSegmenter:
    """Segments in this process: call `segment` from any thread, then `close`."""

    def __init__(self, source: Path, settings: Settings) -> None:
        """source: a model repository, or one model file.

        Raises: ModelLoadError.
        """
        self._scratch = tempfile.TemporaryDirectory(prefix="fcn-model-")
        self._loop = asyncio.new_event_loop()
        # A daemon, or a process that ends without `close`, as Ray's workers do, would never end.
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="fcn-local", daemon=True
        )
        self._thread.start()
        self._segmenter: Segmenter | None = None
        try:
            repository = source if source.is_dir() else self._repository_of(source)
            self._segmenter = self._run(_started(repository, settings))
        except BaseException:
            self.close()
            raise

    def status(
        self, model: str | None, version: str | None = None
    ) -> tuple[ModelStatus, VersionStatus]:
        """Gives `Segmenter.status`. Raises: ServiceError."""
        return self._running.status(model, version)

    def segment(self, image: bytes | UInt8Array, options: SegmentOptions) -> SegmentReply:
        """Raises: ServiceError."""
        return self._run(self._running.segment(image, options))

    def close(self) -> None:
        if self._segmenter is not None:
            self._run(self._segmenter.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._scratch.cleanup()

    @property
    def _running(self) -> Segmenter:
        if self._segmenter is None:
            raise RuntimeError("the segmenter did not start")
        return self._segmenter

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # an interrupt of the caller's: the work is not wanted any more
            future.cancel()
            raise

    def _repository_of(self, file: Path) -> Path:
        """Makes a repository with this file alone, under the name its contract has."""
        if not file.is_file():
            raise ModelLoadError(f"{file} does not exist: give a model file or a model repository")
        name = open_onnx_runtime(file, provider="cpu", threads=1).contract.model_name
        version = file.parent.name if file.parent.name.isdigit() else "1"
        folder = Path(self._scratch.name) / name / version
        folder.mkdir(parents=True)
        (folder / "model.onnx").symlink_to(file.resolve())
        return Path(self._scratch.name)


def unbounded(config: SegmenterConfig) -> SegmenterConfig:
    """Lets as much be in flight as the caller likes."""
    return replace(
        config,
        max_inflight=_PLENTY,
        max_inflight_bytes=_PLENTY,
        max_inflight_pixels=_PLENTY,
        max_queue=_PLENTY,
        max_wait_s=math.inf,
    )


async def _started(repository: Path, settings: Settings) -> Segmenter:
    config = replace(
        unbounded(settings.segmenter_config()),
        model_repository=repository,
        model_poll_s=0.0,
        decode="threads",
    )
    segmenter = Segmenter(config)
    await segmenter.start()
    return segmenter
