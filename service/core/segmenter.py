"""One request, forward only: admit, decode, prepare, batch, run, encode.

Every transport holds the same `Segmenter`; this is the only module that knows the order of the
steps.
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
from service.core.batching.policy import InferenceResult
from service.core.engines.choice import network_opener
from service.core.engines.cores import available_cores
from service.core.engines.memory import admitted_pixels, available_memory_bytes, whole_pixels
from service.core.images import header
from service.core.images.decode import decode, undecoded
from service.core.images.prepare import Geometry, Prepared, prepare, restore
from service.core.images.tiles import Mosaic, Tile, in_tiles
from service.core.models.loader import Loader, Served
from service.core.models.manager import Fleet
from service.core.outputs import writing
from service.core.threads import Pool, settle
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
        self._limits = _Limits(
            config.max_image_bytes,
            config.max_image_pixels,
            config.max_whole_pixels or whole_pixels(memory_bytes),
        )
        self._observer = observer or NullObserver()
        self._clock = clock
        self._pool = Pool(config.pool_workers or cores, clock)
        self._fleet = Fleet(
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
        self._catalog = self._fleet.catalog
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
            await self._fleet.start()
        except BaseException:
            await self.aclose()
            raise
        self._started = True
        if self._config.model_poll_s:
            self._watching = asyncio.create_task(self._fleet.watch(self._config.model_poll_s))

    async def load(self, name: str) -> None:
        """Reads a model's folder again and serves what is new, changed, or failed before.

        Returns when it is ready. Raises: UnknownModel, or ModelLoadError when any of its versions
        failed, while those that served go on; ShuttingDown, ModelNotReady before the start.
        """
        self._check_open()
        await self._fleet.load(name)

    async def unload(self, name: str) -> None:
        """Takes no new requests for a model; returns when those it has are answered and its memory
        is free. Until `load` it stays so, whatever changes in the repository.

        Raises: UnknownModel, ShuttingDown, ModelNotReady before the start.
        """
        self._check_open()
        await self._fleet.unload(name)

    @property
    def loading(self) -> bool:
        """Whether a thread is loading a model, which cannot be interrupted."""
        return self._fleet.busy

    def index(self) -> list[IndexEntry]:
        """Every version in the repository, by name and number, whether it serves or not."""
        return self._fleet.index()

    def models(self) -> list[ModelStatus]:
        """Those that serve, by name."""
        return self._catalog.statuses()

    def status(
        self, name: str | None, version: str | None = None
    ) -> tuple[ModelStatus, VersionStatus]:
        """Finds the model and version that a request of these names means, ready or not.

        Raises: InvalidParameter, UnknownModel, UnknownVersion.
        """
        return self._catalog.status(name, version)

    def default_model(self) -> str | None:
        """Names the model that answers requests which name none; None when they must name one."""
        return self._catalog.default_name()

    def metric_label(self, name: str | None) -> str:
        """Names the model that a request of this name means, for metrics; "" for made-up names."""
        return self._catalog.metric_label(name)

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
        """Refuses what `segment` would refuse now whatever the image, before its upload.

        Raises: as `segment`.
        """
        model = self._model(options)
        deadline = self._deadline(options)
        writing.check_output(options, model)
        self._admission.check(model.queue)
        model.queue.check(deadline, options.priority)

    def check_any(self, deadline_s: float | None) -> None:
        """Does as `check`, while it is not known yet which model is wanted. Raises: Overloaded."""
        deadline = None if deadline_s is None else self._clock() + deadline_s
        queues = [model.queue for model in self._catalog.entries() if model.queue.alive]
        if queues:
            self._admission.check(queues[0])
            if all(queue.is_overloaded(deadline, Priority.HIGH) for queue in queues):
                queues[0].check(deadline, Priority.HIGH)

    async def segment(self, image: bytes | UInt8Array, options: SegmentOptions) -> SegmentReply:
        """Labels an image and encodes the reply. Cancelling the task drops the work.

        image: a file's bytes, or its pixels, uint8 RGB [H,W,3].

        Raises: any ServiceError but ModelLoadError.
        """
        model = self._model(options)
        deadline = self._deadline(options)
        selected_ids = writing.check_output(options, model)
        # Room before the decode: a flood of uploads must not become a flood of pixels.
        n_bytes, pixels = _cost(image)
        # More than is taken is refused by its header, and so costs no pixels.
        pixels = min(pixels, self._config.max_image_pixels)
        permit = self._admission.admit(model.queue, n_bytes, pixels, deadline, options.priority)
        with model, permit:
            job = _Job(image, options, model, selected_ids, permit, self._limits, self._clock)
            try:
                return await self._run(job)
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
        self._fleet.close()
        self._pool.close()

    async def _run(self, job: _Job) -> SegmentReply:
        model, options, request = job.model, job.options, job.permit.request
        timings, began = Timings(), self._clock()
        self._pool.submit(job.decode_and_put, request.future)
        try:
            result = await model.queue.result(request)
        finally:
            if job.decoded_s:
                timings.decode_s = job.decoded_s - began
                self._observer.stage(model.name, "decode", timings.decode_s)
                self._observer.image_pixels(job.pixels)
        if result is _NOT_RUN:
            result = await self._run_in_tiles(job)
        timings.queue_s, timings.infer_s = result.queue_s, result.infer_s
        timings.render_s = result.postprocess_s
        self._observer.stage(model.name, "queue", timings.queue_s)
        self._observer.stage(model.name, "infer", timings.infer_s)
        label_map = restore(result.label_map, job.prepared.geometry)
        scores: tuple[npt.NDArray[np.float32], ...] = ()
        if options.scores:
            scores = tuple(restore(result.postprocessed, job.prepared.geometry))
        body, media_type = b"", ""
        if isinstance(result.postprocessed, bytes):
            body, media_type = result.postprocessed, render.PNG
        elif options.output is not None:
            began = self._clock()
            encode = partial(job.encode, label_map, result.postprocessed, timings)
            body, media_type = await self._pool.run(encode, request.deadline)
            timings.render_s += self._clock() - began
        self._observer.stage(model.name, "render", timings.render_s)
        return SegmentReply(
            body=body,
            media_type=media_type,
            height=job.prepared.geometry.height,
            width=job.prepared.geometry.width,
            model=model.name,
            version=model.version,
            label_map=label_map,
            timings=timings,
            batch_size=result.batch_size,
            scores=scores,
        )

    async def _run_in_tiles(self, job: _Job) -> InferenceResult:
        """Runs what would take more memory, whole, than there is."""
        queue, deadline = job.model.queue, job.permit.request.deadline
        postprocess = writing.reduction(job.options, job.selected_ids)
        mosaic = Mosaic(job.prepared.tensor, job.model.contract.input, self._limits.whole_pixels)
        results: list[InferenceResult] = []

        async def run(tile: Tile) -> None:
            cut = await self._pool.run(partial(mosaic.cut, tile), deadline)
            # Without room of its own: the image was admitted with all its pixels.
            request = queue.request(deadline, job.options.priority)
            queue.put(request, cut, postprocess, wants_logits=postprocess is not None)
            result = await queue.result(request)
            await self._pool.run(
                mosaic.placing(tile, result.label_map, result.postprocessed), deadline
            )
            results.append(result)

        # As many at once as there are instances: others' images get their turn in between.
        await in_tiles(mosaic.tiles, run, at_once=job.model.shared_instances)
        return InferenceResult(
            mosaic.label_map,
            queue_s=sum(result.queue_s for result in results),
            infer_s=sum(result.infer_s for result in results),
            batch_size=1,
            postprocessed=mosaic.scores,
            postprocess_s=sum(result.postprocess_s for result in results),
        )

    def _model(self, options: SegmentOptions) -> Served:
        """Raises: ShuttingDown, ModelNotReady, UnknownModel, UnknownVersion, InvalidParameter."""
        self._check_open()
        return self._catalog.find(options.model, options.version)

    def _check_open(self) -> None:
        """Raises: ShuttingDown, ModelNotReady."""
        if self._draining:
            self._observer.rejected("shutting_down")
            raise ShuttingDown()
        if not self._started:
            raise ModelNotReady("the models are still loading: try again in a moment")

    def _deadline(self, options: SegmentOptions) -> float | None:
        """Returns it as a moment of the clock. Raises: InvalidParameter."""
        if not 0.0 <= options.alpha <= 1.0:
            raise InvalidParameter(f"alpha is {options.alpha:g}: give a number from 0 to 1")
        if options.deadline_s is None:
            return None
        if not options.deadline_s > 0.0:
            raise InvalidParameter(f"the deadline is {options.deadline_s:g} s: give more than 0")
        return self._clock() + options.deadline_s


_NOT_RUN = InferenceResult(np.empty((0, 0), np.uint8), 0.0, 0.0, 0)


def _cost(image: bytes | UInt8Array) -> tuple[int, int]:
    """Returns the bytes held, and the pixels, 0 while they are not known."""
    if isinstance(image, bytes):
        return len(image), header.pixels(image) or 0
    return image.nbytes, image.shape[0] * image.shape[1]


@dataclass(frozen=True, slots=True)
class _Limits:
    """whole_pixels: a larger image is run in tiles."""

    image_bytes: int
    image_pixels: int
    whole_pixels: int


@dataclass(eq=False, slots=True)
class _Job:
    """One admitted image, and what a thread of the pool makes of it.

    decoded_s: when that was done; 0 before, and then there is nothing more. rgb: uint8 [H,W,3].
    """

    image: bytes | UInt8Array
    options: SegmentOptions
    model: Served
    selected_ids: frozenset[int] | None
    permit: Permit
    limits: _Limits
    clock: Clock
    decoded_s: float = 0.0
    rgb: UInt8Array = field(init=False)
    prepared: Prepared = field(init=False)

    @property
    def pixels(self) -> int:
        return self.prepared.geometry.height * self.prepared.geometry.width

    def decode_and_put(self) -> None:
        """Puts the image into the queue, on a thread of the pool.

        One too large to be run whole it answers with `_NOT_RUN`. Raises what is wrong with it.
        """
        self._decode()
        request, tensor = self.permit.request, self.prepared.tensor
        if self.pixels != self.permit.pixels:
            loop = request.future.get_loop()
            loop.call_soon_threadsafe(self.permit.correct, self.pixels)
        height, width = tensor.shape[:2]
        writing.check_size(self.options, self.model.contract, self.selected_ids, height, width)
        if height * width > self.limits.whole_pixels:
            settle(request.future, _NOT_RUN)
            return
        postprocess = reduction = writing.reduction(self.options, self.selected_ids)
        if (
            self.options.output is Output.LABEL_MAP
            and not self.options.scores
            and self.model.provider == "cpu"
        ):
            # Packing it takes a tenth of a millisecond, and on a CPU no device waits meanwhile: the
            # thread that ran the network does it, for giving it to another costs more.
            # A method would make a cycle that holds the model until the collector comes.
            postprocess = partial(
                _pack,
                geometry=self.prepared.geometry,
                palette=self.model.palette,
                selected_ids=self.selected_ids,
            )
        self.model.queue.put(request, tensor, postprocess, wants_logits=reduction is not None)

    def encode(
        self, label_map: UInt8Array, scores: npt.NDArray[Any] | None, timings: Timings
    ) -> tuple[bytes, str]:
        """Makes the reply's body and its media type; label_map as uploaded, scores as prepared."""
        if scores is not None and not self.options.scores:
            return writing.write_scores(self.options, restore(scores, self.prepared.geometry))
        return writing.write(
            self.options, self.model, timings, self.rgb, label_map, self.selected_ids
        )

    def _decode(self) -> None:
        if isinstance(self.image, bytes):
            limits = self.limits
            decoded = decode(
                self.image, max_bytes=limits.image_bytes, max_pixels=limits.image_pixels
            )
        else:
            decoded = undecoded(self.image, max_pixels=self.limits.image_pixels)
        self.rgb = decoded.rgb
        self.prepared = prepare(self.rgb, self.model.contract.input)
        self.decoded_s = self.clock()


def _pack(
    label_map: UInt8Array,
    _: object,
    *,
    geometry: Geometry,
    palette: UInt8Array,
    selected_ids: frozenset[int] | None,
) -> bytes:
    return writing.pack(restore(label_map, geometry), palette, selected_ids)
