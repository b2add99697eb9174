"""One version of a model, from its file to a queue that takes requests."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from model.contract import Contract
from service.config import SegmenterConfig
from service.core.batching.device_threads import serve
from service.core.batching.queue import BatchQueue
from service.core.engines.cuda import MAX_BATCH
from service.core.engines.warm_up import batch_shapes, warm_up_batches
from service.core.images.prepare import accepted_sizes, ordinary_size
from service.core.models.model_settings import ModelSettings
from service.core.models.repository import ModelFile, check_present
from service.core.threads import DEVICE_NICE
from service.core.types import Clock, ModelState, Network, Observer
from service.errors import ModelLoadError

BATCHES_S: Final = 60.0
"""Longest time for the batches of one version: readiness must not wait for rare ones."""
_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Served:
    """One version of a model that takes requests. Whoever uses it does so in its `with` block.

    source: what it was made of, see `source_of`. palette: see `Contract.palette`.
    """

    name: str
    version: str
    network: Network
    queue: BatchQueue
    threads: Sequence[threading.Thread]
    source: object = None
    palette: npt.NDArray[np.uint8] = field(init=False)
    _users: int = 0
    _unused: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.palette = self.contract.palette()

    @property
    def contract(self) -> Contract:
        return self.network.contract

    @property
    def provider(self) -> str:
        return self.network.provider

    @property
    def path(self) -> Path:
        return self.network.path

    @property
    def state(self) -> ModelState:
        return ModelState.READY if self.queue.alive else ModelState.FAILED

    @property
    def shared_instances(self) -> int:
        """Counts those that share the device."""
        return sum(not instance.full_device for instance in self.network.instances)

    def join(self) -> None:
        """Waits, after the queue was closed, for the end of the device threads."""
        for thread in self.threads:
            thread.join()

    async def until_unused(self) -> None:
        if self._users:
            await self._unused.wait()

    def __enter__(self) -> Self:
        self._users += 1
        self._unused.clear()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._users -= 1
        if not self._users:
            self._unused.set()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network that has answered. An image of `pixels` took it `seconds`."""

    file: ModelFile
    settings: ModelSettings
    network: Network
    pixels: int
    seconds: float


class Loader:
    """`load` on a thread, then `serve` on the event loop."""

    def __init__(
        self,
        config: SegmenterConfig,
        *,
        open_network: Callable[[Path], Network],
        observer: Observer,
        clock: Clock,
    ) -> None:
        self._open = open_network
        self._config = config
        self._observer = observer
        self._clock = clock
        self._at_work = 0

    @property
    def busy(self) -> bool:
        """Whether a thread is loading a network."""
        return self._at_work > 0

    def load(self, file: ModelFile, settings: ModelSettings) -> Loaded:
        """Opens and warms up. Raises: ModelLoadError, or whatever a runtime raises."""
        # On the thread itself: whoever waited for it may have left.
        self._at_work += 1
        try:
            return self._load(file, settings)
        finally:
            self._at_work -= 1

    def serve(self, loaded: Loaded) -> Served:
        """Takes requests from now on."""
        file, network, config = loaded.file, loaded.network, self._config
        shared = sum(not instance.full_device for instance in network.instances)
        queue = BatchQueue(
            model=file.name,
            instances=shared,
            full_device=shared < len(network.instances),
            max_batch=self._max_batch(network, loaded.settings),
            max_batch_pixels=config.max_batch_pixels,
            max_queue=config.max_queue,
            max_wait_s=config.max_wait_s,
            observer=self._observer,
            clock=self._clock,
        )
        queue.seed(loaded.pixels, loaded.seconds)
        # A GPU waits for whoever launches its kernels, and that takes little: such a thread does
        # not stand back.
        nice = DEVICE_NICE if network.provider == "cpu" else 0
        threads = serve(network.instances, queue, name=file.name, nice=nice, clock=self._clock)
        _log.info("serving %s version %s on %s", file.name, file.version, network.provider)
        source = source_of(file, loaded.settings)
        return Served(file.name, file.version, network, queue, threads, source)

    def _load(self, file: ModelFile, settings: ModelSettings) -> Loaded:
        check_present(file)
        network = self._open(file.path)
        contract = network.contract
        if contract.model_name != file.name:
            _log.warning(
                "%s calls itself %r and is served under its folder's name, %r",
                file.path,
                contract.model_name,
                file.name,
            )
        size = ordinary_size(contract.input)
        if size is None:
            raise ModelLoadError(
                f"{file.path}: the contract allows no size at all: no multiple of "
                f"{contract.input.multiple_of_px} px lies between its smallest and largest side"
            )
        wanted = (*self._config.warm_up_sizes, *settings.warm_up_sizes)
        sizes = [*accepted_sizes(wanted, contract.input), size]
        network.warm_up(sizes)
        if network.provider != "cpu":
            self._warm_up_batches(file, network, sizes, self._max_batch(network, settings))
        began = self._clock()
        network.warm_up([size])
        seconds = (self._clock() - began) / len(network.instances)
        return Loaded(file, settings, network, size[0] * size[1], seconds)

    def _max_batch(self, network: Network, settings: ModelSettings) -> int:
        # On a CPU a batch takes as long as its images one by one: it would delay the first.
        usual = 1 if network.provider == "cpu" else MAX_BATCH
        return settings.max_batch or self._config.max_batch or usual

    def _warm_up_batches(
        self, file: ModelFile, network: Network, sizes: Sequence[tuple[int, int]], max_batch: int
    ) -> None:
        """On a GPU, where each number of images is a shape of its own. Raises: ModelLoadError."""
        shapes = batch_shapes(sizes, max_batch, self._config.max_batch_pixels)
        began = self._clock()
        left = warm_up_batches(network, shapes, BATCHES_S, self._clock)
        _log.info(
            "%s version %s: warmed up %d of %d batches in %.1f s",
            file.name,
            file.version,
            len(shapes) - len(left),
            len(shapes),
            self._clock() - began,
        )
        if left:
            _log.warning(
                "%s version %s: %d batches are not warmed up after %g s, and will be slow when "
                "they first come: give fewer FCN_WARM_UP_SIZES or a smaller FCN_MAX_BATCH",
                file.name,
                file.version,
                len(left),
                BATCHES_S,
            )


def source_of(file: ModelFile, settings: ModelSettings) -> object:
    """What a network and its queue are made of: when it differs, they are made again."""
    return file.stamp, settings.max_batch, settings.warm_up_sizes
