"""One request, forward only: admit, decode, prepare, batch, run, undo, render.

REST and gRPC hold the same `Segmenter`; this is the only module that knows all the others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service.config import SegmenterConfig
from service.core import outputs as render
from service.core.batching.admission import Admission, Permit
from service.core.batching.lanes import Finish, Labelled, Place, Squeeze, Ticket
from service.core.engines.choice import network_opener
from service.core.engines.cores import available_cores
from service.core.engines.memory import admitted_pixels, available_memory_bytes, whole_pixels
from service.core.images import header
from service.core.images.decode import decode, undecoded
from service.core.images.prepare import Prepared, prepare, restore
from service.core.images.tiles import tiles
from service.core.models.loader import LoadedModel, Loader
from service.core.models.manager import ModelManager
from service.core.outputs import writing
from service.core.pool import Pool
from service.core.types import (
    Clock,
    Dtype,
    IndexEntry,
    ModelState,
    ModelStatus,
    Network,
    NullObserver,
    Observer,
    Output,
    Priority,
    Score,
    SegmentOptions,
    SegmentReply,
    Timings,
    VersionStatus,
)
from service.errors import (
    DeadlineExceeded,
    InvalidParameter,
    ModelNotReady,
    Overloaded,
    ShuttingDown,
)

__all__ = [
    "Dtype",
    "IndexEntry",
    "ModelState",
    "ModelStatus",
    "Network",
    "NullObserver",
    "Observer",
    "Output",
    "Priority",
    "Score",
    "SegmentReply",
    "SegmentOptions",
    "Segmenter",
    "Timings",
    "VersionStatus",
]

UInt8Array = npt.NDArray[np.uint8]
_log = logging.getLogger(__name__)


class Segmenter:
    """`start`, then `segment` from any task of one event loop, then `drain` and `aclose`."""

    def __init__(
        self,
        config: SegmenterConfig,
        *,
        changed: Callable[[Sequence[ModelStatus]], None] | None = None,
        observer: Observer | None = None,
        clock: Clock = time.monotonic,
        open_network: Callable[[Path], Network] | None = None,
    ) -> None:
        """changed: told of the models that serve whenever they are others.
        open_network: how to load a model file, in place of what the config says of engines.
        """
        cores = available_cores()
        self._config = config
        memory_bytes = available_memory_bytes()
        self._whole_pixels = config.max_whole_pixels or whole_pixels(memory_bytes)
        self._observer = observer or NullObserver()
        self._clock = clock
        self._pool = Pool(config.pool_workers or cores, clock)
        self._manager = ModelManager(
            config.model_repository,
            Loader(
                config,
                open_network=open_network or network_opener(config, cores),
                observer=self._observer,
                clock=clock,
            ),
            default_model=config.default_model,
            changed=changed or (lambda models: None),
        )
        self._registry = self._manager.registry
        self._watching: asyncio.Task[None] | None = None
        self._admission = Admission(
            max_requests=config.max_inflight,
            max_bytes=config.max_inflight_bytes,
            max_pixels=config.max_inflight_pixels or admitted_pixels(memory_bytes),
            observer=self._observer,
        )
        self._started = False
        self._draining = False

    async def start(self) -> None:
        """Loads and warms up every model. Raises: ModelLoadError."""
        try:
            await self._manager.start()
        except BaseException:
            await self.aclose()
            raise
        self._started = True
        if self._config.model_poll_s:
            self._watching = asyncio.create_task(self._manager.watch(self._config.model_poll_s))

    async def load(self, name: str) -> None:
        """Reads a model's folder again and serves what is new, changed, or failed before.

        Returns when it is ready. Raises: UnknownModel, or ModelLoadError when any of its versions
        failed, while those that served go on; ShuttingDown, ModelNotReady before the start.
        """
        self._check_open()
        await self._manager.load(name)

    async def unload(self, name: str) -> None:
        """Takes no new requests for a model; returns when those it has are answered and its memory
        is free. Until `load` it stays so, whatever changes in the repository.

        Raises: UnknownModel, ShuttingDown, ModelNotReady before the start.
        """
        self._check_open()
        await self._manager.unload(name)

    @property
    def loading(self) -> bool:
        """Whether a thread is loading a model, which cannot be interrupted."""
        return self._manager.busy

    def index(self) -> list[IndexEntry]:
        """Every version in the repository, by name and number, whether it serves or not."""
        return self._manager.index()

    def models(self) -> list[ModelStatus]:
        """Those that serve, by name."""
        return self._registry.statuses()

    def status(
        self, name: str | None, version: str | None = None
    ) -> tuple[ModelStatus, VersionStatus]:
        """Finds the model and version that a request of these names means, ready or not.

        Raises: InvalidParameter, UnknownModel, UnknownVersion.
        """
        return self._registry.status(name, version)

    def default_model(self) -> str | None:
        """Names the model that answers requests which name none; None when they must name one."""
        return self._registry.default_name()

    def metric_label(self, name: str | None) -> str:
        """Names the model that a request of this name means, for metrics; "" for made-up names."""
        return self._registry.metric_label(name)

    def ready(self) -> bool:
        """True while new requests are taken and every loaded model's default version answers.

        A version that could not be loaded does not count: it never served.
        """
        return (
            self._started
            and not self._draining
            and all(m.default.state is ModelState.READY for m in self.models())
        )

    def check(self, options: SegmentOptions) -> None:
        """What `segment` would refuse now whatever the picture: worth knowing before its upload.

        Raises: as `segment`.
        """
        served = self._served(options)
        deadline = self._check(options)
        writing.check_output(options, served)
        if not self._admission.fits():
            raise self._overloaded(served)
        served.batcher.check(deadline, options.priority)

    def check_any(self, deadline_s: float | None) -> None:
        """As `check`, while it is not known yet which model is wanted. Raises: Overloaded."""
        deadline = None if deadline_s is None else self._clock() + deadline_s
        served = [s for s in self._registry.models() if s.batcher.alive]
        if served and not self._admission.fits():
            raise self._overloaded(served[0])
        if served and all(s.batcher.crowded(deadline, Priority.HIGH) for s in served):
            served[0].batcher.check(deadline, Priority.HIGH)

    async def segment(self, image: bytes | UInt8Array, options: SegmentOptions) -> SegmentReply:
        """Cancelling the task drops the work.

        image: a file's bytes, or its pixels, uint8 RGB [H,W,3].

        Raises: any ServiceError but ModelLoadError.
        """
        served = self._served(options)
        deadline = self._check(options)
        kept = writing.check_output(options, served)
        # Room before the decode: a flood of uploads must not become a flood of pixels.
        n_bytes, pixels = _cost(image)
        # More than is taken is refused by its header, and so costs no pixels.
        pixels = min(pixels, self._config.max_image_pixels)
        if not self._admission.fits(n_bytes, pixels):
            raise self._overloaded(served)
        place = served.batcher.reserve(pixels, deadline, options.priority)
        with served, place, self._admission.admit(n_bytes, pixels) as permit:
            try:
                return await self._answer(options, image, served, deadline, kept, place, permit)
            except DeadlineExceeded:
                self._observer.rejected("deadline")
                raise
            except asyncio.CancelledError:
                self._observer.rejected("cancelled")
                raise

    async def drain(self, timeout_s: float) -> bool:
        """Refuses new work; True if all in flight finished within `timeout_s`."""
        self._draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._admission.until_idle()
        except TimeoutError:
            _log.warning("%d requests did not finish in %g s", self._admission.requests, timeout_s)
        return self._admission.requests == 0

    async def aclose(self) -> None:
        """Fails what is still in flight with ShuttingDown."""
        self._draining = True
        if self._watching is not None:
            self._watching.cancel()
        self._manager.close()
        self._pool.close()

    async def _answer(
        self,
        options: SegmentOptions,
        body: bytes | UInt8Array,
        served: LoadedModel,
        deadline: float | None,
        kept: frozenset[int] | None,
        place: Place,
        permit: Permit,
    ) -> SegmentReply:
        name, timings, picture = served.name, Timings(), _Picture(body, kept, permit)
        ticket = served.batcher.ticket(deadline, place)
        began = self._clock()
        self._pool.give(partial(self._read, options, served, picture, ticket), ticket.future)
        labelled: Labelled | None = None
        try:
            labelled = await served.batcher.answer(ticket)
        except _TooLargeWhole:
            pass
        finally:
            if picture.decoded_s:
                timings.decode_s = picture.decoded_s - began
                self._observer.stage(name, "decode", timings.decode_s)
                self._observer.image_pixels(picture.pixels)
        rgb, prepared = picture.rgb, picture.prepared
        if labelled is None:
            squeeze = writing.squeeze(options, kept)
            labelled = await self._in_parts(served, prepared.tensor, deadline, place, squeeze)
        timings.queue_s, timings.infer_s = labelled.queue_s, labelled.infer_s
        label_map = restore(labelled.label_map, prepared.geometry)
        if labelled.finished is not None:
            answer, media_type = labelled.finished.png, render.PNG
            timings.render_s = labelled.finished.seconds
            timings.infer_s -= timings.render_s
        self._observer.stage(name, "queue", timings.queue_s)
        self._observer.stage(name, "infer", timings.infer_s)
        scores: tuple[npt.NDArray[np.float32], ...] = ()
        if labelled.finished is None:
            began = self._clock()
            write: Callable[[], tuple[bytes, str]] = partial(
                writing.write, options, served, timings, rgb, label_map, kept
            )
            if labelled.scores is not None:
                restored = restore(labelled.scores, prepared.geometry)
                if options.scores:
                    scores = tuple(restored)
                else:
                    write = partial(writing.write_scores, options, restored)
            answer, media_type = await self._pool.run(write, deadline)
            timings.render_s = self._clock() - began
        self._observer.stage(name, "render", timings.render_s)
        return SegmentReply(
            body=answer,
            media_type=media_type,
            height=prepared.geometry.height,
            width=prepared.geometry.width,
            model=name,
            version=served.version,
            label_map=label_map,
            timings=timings,
            batch_size=labelled.batch_size,
            scores=scores,
        )

    def _read(
        self, options: SegmentOptions, served: LoadedModel, picture: _Picture, ticket: Ticket
    ) -> None:
        """On a thread of the pool: decodes, and puts what can be run whole into the queue.

        Raises: _TooLargeWhole, and whatever is wrong with the picture.
        """
        contract = served.contract
        picture.rgb = _decode(picture.body, self._config)
        picture.prepared = prepared = prepare(picture.rgb, contract.input)
        picture.decoded_s = self._clock()
        if picture.pixels != picture.permit.pixels:
            ticket.future.get_loop().call_soon_threadsafe(picture.permit.correct, picture.pixels)

        height, width = prepared.tensor.shape[:2]
        if options.output is Output.PROBABILITIES:
            classes = len(contract.classes if picture.kept is None else picture.kept)
            render.check_size(height, width, classes, options.dtype)
        if options.scores:
            render.check_arrays(
                height, width, len(contract.classes), options.scores, options.max_scores_bytes
            )
        if height * width > self._whole_pixels:
            raise _TooLargeWhole
        finish: Finish | None = None
        if options.output is Output.LABEL_MAP and not options.scores and served.provider == "cpu":
            # Packing it takes a tenth of a millisecond, and on a CPU no device waits meanwhile: the
            # thread that ran the network does it, for giving it to another costs more.
            finish = partial(
                writing.pack,
                self._clock,
                geometry=prepared.geometry,
                palette=served.palette,
                kept=picture.kept,
            )
        squeeze = writing.squeeze(options, picture.kept)
        served.batcher.put(ticket, prepared.tensor, squeeze, finish)

    async def _in_parts(
        self,
        served: LoadedModel,
        image: UInt8Array,
        deadline: float | None,
        place: Place,
        squeeze: Squeeze | None,
    ) -> Labelled:
        """Of what would take more memory, whole, than there is."""
        height, width = image.shape[:2]
        parts = tiles(height, width, served.contract.input, self._whole_pixels)
        label_map = np.empty((height, width), np.uint8)
        scores: npt.NDArray[Any] | None = None
        queue_s, infer_s, remaining = 0.0, 0.0, iter(parts)

        async def work() -> None:
            nonlocal queue_s, infer_s, scores
            for part in remaining:
                cut = await self._pool.run(partial(part.cut, image), deadline)
                # The picture's place is its parts' too: it was admitted with all its pixels.
                labelled = await served.batcher.submit(cut, deadline, place, squeeze=squeeze)
                await self._pool.run(partial(part.put, labelled.label_map, label_map), deadline)
                if (found := labelled.scores) is not None:
                    if scores is None:
                        scores = np.empty((*found.shape[:-2], height, width), found.dtype)
                    await self._pool.run(partial(part.put, found, scores), deadline)
                queue_s += labelled.queue_s
                infer_s += labelled.infer_s

        # As many at once as there are instances: others' pictures get their turn in between.
        try:
            async with asyncio.TaskGroup() as group:
                for _ in parts[: sum(not i.full_device for i in served.network.instances)]:
                    group.create_task(work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return Labelled(label_map, queue_s, infer_s, 1, scores)

    def _served(self, options: SegmentOptions) -> LoadedModel:
        """Raises: ShuttingDown, ModelNotReady, UnknownModel, UnknownVersion, InvalidParameter."""
        self._check_open()
        return self._registry.find(options.model, options.version)

    def _check_open(self) -> None:
        """Raises: ShuttingDown, ModelNotReady."""
        if self._draining:
            self._observer.rejected("shutting_down")
            raise ShuttingDown()
        if not self._started:
            raise ModelNotReady("the models are still loading: try again in a moment")

    def _overloaded(self, served: LoadedModel) -> Overloaded:
        self._observer.rejected("overloaded")
        return Overloaded(served.batcher.retry_after_s())

    def _check(self, options: SegmentOptions) -> float | None:
        """The deadline as a moment of the clock. Raises: InvalidParameter."""
        if not 0.0 <= options.alpha <= 1.0:
            raise InvalidParameter(f"alpha is {options.alpha:g}: give a number from 0 to 1")
        if options.deadline_s is None:
            return None
        if not options.deadline_s > 0.0:
            raise InvalidParameter(f"the deadline is {options.deadline_s:g} s: give more than 0")
        return self._clock() + options.deadline_s


def _cost(body: bytes | UInt8Array) -> tuple[int, int]:
    """Bytes held, and pixels, 0 while they are not known."""
    if isinstance(body, bytes):
        return len(body), header.pixels(body) or 0
    return body.nbytes, body.shape[0] * body.shape[1]


class _TooLargeWhole(Exception):
    """The picture is decoded, and to be run in parts."""


@dataclass(eq=False, slots=True)
class _Picture:
    """An upload, and what a thread of the pool makes of it.

    decoded_s: when that was done; 0 before, and then there is nothing more. rgb: uint8 [H,W,3].
    """

    body: bytes | UInt8Array
    kept: frozenset[int] | None
    permit: Permit
    decoded_s: float = 0.0
    rgb: UInt8Array = field(init=False)
    prepared: Prepared = field(init=False)

    @property
    def pixels(self) -> int:
        return self.prepared.geometry.height * self.prepared.geometry.width


def _decode(body: bytes | UInt8Array, config: SegmenterConfig) -> UInt8Array:
    if isinstance(body, bytes):
        image = decode(body, max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels)
    else:
        image = undecoded(body, max_pixels=config.max_image_pixels)
    return image.rgb
