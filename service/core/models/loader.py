"""Loads one version of a model, from its file to a queue that takes requests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from model.contract import Contract
from service.config import SegmenterConfig
from service.core.batching.queue import BatchQueue
from service.core.batching.threads import DEVICE_NICE, serve
from service.core.engines.cuda import MAX_BATCH
from service.core.engines.warm_up import (
    accepted_sizes,
    batch_shapes,
    ordinary_size,
    warm_up,
    warm_up_batches,
)
from service.core.models.model_settings import ModelSettings
from service.core.models.registry import LoadedModel
from service.core.models.repository import ModelFile, check_present
from service.core.types import Clock, Network, Observer
from service.errors import HookFailed, ModelLoadError
from service.hooks import Hooks

BATCHES_S: Final = 60.0
"""Longest time for the batches of one version: readiness must not wait for rare ones."""
_log = logging.getLogger(__name__)


class Loader:
    """Loads models: call `load`, on any thread, then `start`."""

    def __init__(
        self,
        config: SegmenterConfig,
        *,
        open_network: Callable[[Path], Network],
        observer: Observer,
        clock: Clock,
        hooks: Hooks | None = None,
    ) -> None:
        self._hooks = hooks
        self._open = open_network
        self.config = config
        self.observer = observer
        self.clock = clock
        self._at_work = 0

    @property
    def busy(self) -> bool:
        """Tells whether a thread is loading a network."""
        return self._at_work > 0

    def load(self, file: ModelFile, settings: ModelSettings) -> LoadedModel:
        """Opens a model and warms it up. Raises: ModelLoadError, or whatever a runtime raises."""
        # Counted here, on the thread itself: whoever waited for it may have left.
        self._at_work += 1
        try:
            check_present(file)
            network = self._open(file.path)
            size = _check_contract(file, network.contract)
            seconds = self._warm_up(file, settings, network, size)
        finally:
            self._at_work -= 1
        shared = sum(not instance.full_device for instance in network.instances)
        queue = BatchQueue(
            model=file.name,
            version=file.version,
            instances=shared,
            full_device=shared < len(network.instances),
            max_batch=self._max_batch(network, settings),
            max_batch_pixels=self.config.max_batch_pixels,
            max_queue=self.config.max_queue,
            max_wait_s=self.config.max_wait_s,
            observer=self.observer,
            clock=self.clock,
        )
        queue.seed(size[0] * size[1], seconds)
        model = LoadedModel(file.name, file.version, network, queue, source_of(file, settings))
        if self._hooks is not None:
            try:
                model.palette = self._hooks.palette(model)
            except HookFailed as error:
                raise ModelLoadError(f"{file.path}: {error}") from error
        return model

    def start(self, model: LoadedModel) -> None:
        """Starts a model's device threads: it takes requests from now on."""
        # A GPU waits for whoever launches its kernels, and that takes little: such a thread does
        # not stand back.
        nice = DEVICE_NICE if model.provider == "cpu" else 0
        model.threads = serve(
            model.network.instances, model.queue, name=model.name, nice=nice, clock=self.clock
        )
        _log.info("serving %s version %s on %s", model.name, model.version, model.provider)

    def _warm_up(
        self, file: ModelFile, settings: ModelSettings, network: Network, size: tuple[int, int]
    ) -> float:
        """Has it answer before anybody waits; returns the seconds that an image of `size` takes."""
        wanted = (*self.config.warm_up_sizes, *settings.warm_up_sizes)
        sizes = [*accepted_sizes(wanted, network.contract.input), size]
        warm_up(network, sizes)
        if network.provider != "cpu":
            self._warm_up_batches(file, network, sizes, self._max_batch(network, settings))
        began = self.clock()
        warm_up(network, [size])
        return (self.clock() - began) / len(network.instances)

    def _max_batch(self, network: Network, settings: ModelSettings) -> int:
        # On a CPU a batch takes as long as its images one by one: it would delay the first.
        usual = 1 if network.provider == "cpu" else MAX_BATCH
        return settings.max_batch or self.config.max_batch or usual

    def _warm_up_batches(
        self, file: ModelFile, network: Network, sizes: Sequence[tuple[int, int]], max_batch: int
    ) -> None:
        """Warms up a GPU, where each number of images is a shape of its own.

        Raises: ModelLoadError.
        """
        shapes = batch_shapes(sizes, max_batch, self.config.max_batch_pixels)
        began = self.clock()
        left = warm_up_batches(network, shapes, BATCHES_S, self.clock)
        _log.info(
            "%s version %s: warmed up %d of %d batches in %.1f s",
            file.name,
            file.version,
            len(shapes) - len(left),
            len(shapes),
            self.clock() - began,
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


def _check_contract(file: ModelFile, contract: Contract) -> tuple[int, int]:
    """Returns an ordinary (height, width). Raises: ModelLoadError if the model takes none."""
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
    return size


def source_of(file: ModelFile, settings: ModelSettings) -> object:
    """Tells what a model is made of: when it differs, it is loaded again."""
    return file.stamp, settings.max_batch, settings.warm_up_sizes
