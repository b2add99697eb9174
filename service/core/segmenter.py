"""Takes a request forward only: admit, decode, prepare, batch, run, encode.

Every transport holds the same `Segmenter`; this module alone knows the order of the steps.
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

import numpy.typing as npt

from service.config import SegmenterConfig
from service.core.batching.admission import Admission, Permit
from service.core.batching.policy import InferenceResult, Postprocess, settle
from service.core.batching.threads import Pool
from service.core.batching.tiles import TOO_LARGE, run_in_tiles
from service.core.engines import memory
from service.core.engines.choice import open_network as open_by_config
from service.core.engines.cores import available_cores
from service.core.images import decode
from service.core.images.header import Header, read_header
from service.core.images.processes import Decoder
from service.core.images.scale import enlarged
from service.core.models.loader import Loader
from service.core.models.manager import ModelManager
from service.core.models.registry import LoadedModel
from service.core.outputs.registry import Encoder, all_outputs
from service.core.types import (
    NOBODY,
    Client,
    Clock,
    IndexEntry,
    ModelState,
    ModelStatus,
    Network,
    Observer,
    Priority,
    SegmentOptions,
    SegmentReply,
    Timings,
    UInt8Array,
    VersionStatus,
)
from service.errors import InvalidParameter, ModelNotReady, ShuttingDown
from service.hooks import RequestHooks, load_hooks

_log = logging.getLogger(__name__)


class Segmenter:
    """Answers requests: `start`, `segment` from any task of one event loop, `drain`, `aclose`."""

    def __init__(
        self,
        config: SegmenterConfig,
        *,
        changed: Callable[[Sequence[ModelStatus], Sequence[IndexEntry]], None] | None = None,
        observer: Observer | None = None,
        clock: Clock = time.monotonic,
        open_network: Callable[[Path], Network] | None = None,
    ) -> None:
        """Builds its parts; `start` loads the models.

        changed: called with the models that serve and all versions there are, whenever one changes.
        open_network: how to load a model file, in place of what the config says of engines. Raises:
        StartError for a hook that is not there.
        """
        self._hooks = load_hooks(config.hooks)
        cores = available_cores()
        self._config = config
        workers = config.pool_workers or cores
        self._observer = observer or Observer()
        self._decoder = Decoder(config, workers, self._observer.decoder_lost)
        memory_bytes = memory.available_memory_bytes() - self._decoder.memory_bytes
        self._whole_pixels = config.max_whole_pixels or memory.whole_pixels(memory_bytes)
        self._clock = clock
        self._pool = Pool(workers, clock)
        self._manager = ModelManager(
            config.model_repository,
            Loader(
                config,
                open_network=open_network or partial(open_by_config, config, cores, self._observer),
                observer=self._observer,
                clock=clock,
                hooks=self._hooks,
            ),
            default_model=config.default_model,
            changed=changed or (lambda models, index: None),
        )
        self._registry = self._manager.registry
        self.hopeless = self._manager.watchdog.hopeless
        """Set when runs hang one after the other and cannot be ended: the process should end."""
        self._watching: asyncio.Task[None] | None = None
        self._admission = Admission(
            max_requests=config.max_inflight,
            max_bytes=config.max_inflight_bytes,
            max_pixels=config.max_image_pixels,
            max_memory_bytes=memory.admitted_bytes(memory_bytes, config.max_inflight_pixels),
            max_decode_bytes=memory.largest_image_bytes(memory_bytes),
            observer=self._observer,
        )
        self._started = False
        self._draining = False

    async def start(self) -> None:
        """Loads and warms up every model. Raises: ModelLoadError."""
        all_outputs()  # or the first request would import their modules
        try:
            await self._manager.start()
            await asyncio.to_thread(self._decoder.start)
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
        """Tells whether a thread is loading a model, which cannot be interrupted."""
        return self._manager.busy

    def index(self) -> list[IndexEntry]:
        """Lists every version in the repository, by name and number, whether it serves or not."""
        return self._manager.index()

    def models(self) -> list[ModelStatus]:
        """Lists the models that serve, by name."""
        return self._registry.statuses()

    def status(
        self, name: str | None, version: str | None = None
    ) -> tuple[ModelStatus, VersionStatus]:
        """Finds what a request of these names means, ready or not. Raises: InvalidParameter,
        UnknownModel, UnknownVersion."""
        return self._registry.status(name, version)

    def default_model(self) -> str | None:
        """Names the model that answers requests which name none; None when they must name one."""
        return self._registry.default_name()

    def resolve_alias(self, name: str) -> str:
        """Returns the name of an alias's model; any other name as it is."""
        return self._registry.resolve_alias(name)

    def metric_label(self, name: str | None) -> str:
        """Names the model that a request of this name means, for metrics; "" for made-up names."""
        return self._registry.metric_label(name)

    def ready(self) -> bool:
        """Tells whether new requests are taken, and the default version of any model answers."""
        ready = [model.default.state is ModelState.READY for model in self.models()]
        return self._started and not self._draining and (any(ready) or not ready)

    def check(self, options: SegmentOptions, client: Client = NOBODY) -> None:
        """Refuses before an upload what `segment` would refuse now. Raises: as `segment`."""
        model = self._model(options)
        deadline = self._deadline(options)
        Encoder.of(options, model)
        self._admission.check(model.queue, client=client.client)
        model.queue.check(deadline, options.priority, client.client)

    def check_any(self, deadline_s: float | None, client: Client = NOBODY) -> None:
        """Checks what can be before it is known which model is meant. Raises: Overloaded."""
        queues = [model.queue for model in self._registry.models() if model.queue.alive]
        if queues:
            self._admission.check(queues[0], client=client.client)
        if len(queues) == 1:
            deadline = None if deadline_s is None else self._clock() + deadline_s
            queues[0].check(deadline, Priority.HIGH, client.client)

    async def segment(
        self, image: bytes | UInt8Array, options: SegmentOptions, client: Client = NOBODY
    ) -> SegmentReply:
        """Labels an image and encodes the reply. Cancelling the task drops the work.

        image: a file's bytes, or its pixels, uint8 RGB [H,W,3]. client: who asks. Raises: any
        ServiceError but ModelLoadError.
        """
        model = self._model(options)
        deadline = self._deadline(options)
        encoder = Encoder.of(options, model)
        if isinstance(image, bytes):
            header = read_header(image, max_bytes=self._config.max_image_bytes)
            pixels: decode.Pixels = partial(self._decoder.decode, image, header)
        else:
            header = Header("RGB", image.shape[0], image.shape[1])
            pixels = partial(decode.pixels_of, image)
        hooks = self._hooks.of(model, client.id) if self._hooks else None
        pixels = hooks.pixels(pixels, keep=encoder.needs_image) if hooks else pixels
        # Room before the decode: a flood of uploads must not become a flood of pixels.
        n_bytes = len(image) if isinstance(image, bytes) else image.nbytes
        stored, spec = (header.height, header.width), model.contract.input
        size = decode.network_size(*stored, spec, options.scale)
        whole = encoder.needs_image or (hooks and hooks.reads_image)
        reduction = 1 if whole else decode.reduction_to(*stored, size)
        seen_px = decode.network_pixels(*size, spec)
        asked = deadline, options.priority, client.client, seen_px, reduction
        permit = self._admission.admit(model.queue, header, n_bytes, *asked)
        with model, permit:
            client.charge(header.pixels)
            job = _Job(pixels, header, options, model, encoder, permit, size, self._clock, hooks)
            return await self._run(job, client)

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
        self._decoder.close()

    async def _run(self, job: _Job, client: Client) -> SegmentReply:
        model, options, request = job.model, job.options, job.permit.request
        request.mark = client.follow(timings := Timings(began_s=self._clock()))
        self._pool.submit(partial(job.decode_and_put, self._whole_pixels), request.future)
        try:
            result = await model.queue.result(request)
        finally:
            if job.decoded_s:
                timings.decode_s = job.decoded_s - timings.began_s
                timings.queue_s = self._clock() - job.decoded_s  # of one that gets no further
                self._observer.stage(model.name, "decode", timings.decode_s)
                self._observer.image_pixels(job.header.pixels)
        if result is TOO_LARGE:
            result = await run_in_tiles(
                job.tensor,
                model.contract.input,
                request,
                model.queue,
                self._pool,
                put=model.put,
                max_pixels=self._whole_pixels,
                at_once=model.shared_instances,
                postprocess=job.encoder.reduce if job.encoder.needs_logits else None,
            )
        timings.queue_s, timings.infer_s = result.queue_s, result.infer_s
        timings.render_s = result.postprocess_s
        timings.started_s, timings.marks = result.started_s, result.marks
        self._observer.stage(model.name, "queue", timings.queue_s)
        self._observer.stage(model.name, "infer", timings.infer_s)
        encode = partial(job.encode, result, timings)
        if isinstance(result.postprocessed, bytes) or (options.output is None and job.plain):
            body, label_map, scores = encode()  # there already
        else:
            began = self._clock()
            body, label_map, scores = await self._pool.run(encode, request.deadline)
            timings.ended_s = self._clock()
            timings.render_s += timings.ended_s - began
        self._observer.stage(model.name, "render", timings.render_s)
        return SegmentReply(
            body=body,
            media_type=job.encoder.media_type,
            height=job.size[0],
            width=job.size[1],
            model=model.name,
            version=model.version,
            label_map=label_map,
            timings=timings,
            batch_size=result.batch_size,
            scores=() if scores is None or not options.scores else tuple(scores),
            network_size=job.network_size,
        )

    def _model(self, options: SegmentOptions) -> LoadedModel:
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

    def _deadline(self, options: SegmentOptions) -> float | None:
        """Returns it as a moment of the clock. Raises: InvalidParameter."""
        if options.deadline_s is None:
            return None
        if not options.deadline_s > 0.0:
            raise InvalidParameter(f"the deadline is {options.deadline_s:g} s: give more than 0")
        return self._clock() + options.deadline_s


@dataclass(eq=False, slots=True)
class _Job:
    """Holds one admitted image, and what a thread of the pool makes of it.

    network_size: that of what the network sees; as it is stored until `decoded_s`, which is 0 until
    then. size: the upload's, upright. rgb: uint8 [H,W,3], the upload where the encoder needs it,
    else what the network sees.
    """

    pixels: decode.Pixels
    header: Header
    options: SegmentOptions
    model: LoadedModel
    encoder: Encoder
    permit: Permit
    network_size: decode.Size
    clock: Clock
    hooks: RequestHooks | None
    decoded_s: float = 0.0
    size: decode.Size = field(init=False)
    rgb: UInt8Array = field(init=False)
    tensor: UInt8Array = field(init=False)

    @property
    def scaled(self) -> bool:
        return self.network_size != self.size

    @property
    def plain(self) -> bool:
        """Tells whether the answer is the network's own, as it is."""
        return not self.scaled and not (self.hooks and self.hooks.changes_labels)

    def encode(self, result: InferenceResult, timings: Timings) -> tuple[bytes, UInt8Array, Any]:
        """Returns the body, the label map and the scores, of the upload's size."""
        label_map = self._restore(result.label_map)
        if isinstance(result.postprocessed, bytes):
            return result.postprocessed, label_map, None
        label_map = self.hooks.after(label_map) if self.hooks else label_map
        scores = None if result.postprocessed is None else self._restore(result.postprocessed)
        body = self.encoder.encode(self.rgb, label_map, scores, timings, self.network_size)
        return body, label_map, scores

    def _restore(self, answer: npt.NDArray[Any]) -> npt.NDArray[Any]:
        answer = answer[..., : self.network_size[0], : self.network_size[1]]
        return enlarged(answer, self.size) if self.scaled else answer

    def decode_and_put(self, max_whole_pixels: int) -> None:
        """Puts the image into the queue, on a thread of the pool.

        One of more pixels than are run whole is answered with `TOO_LARGE`. Raises what is wrong.
        """
        self._decode()
        request, tensor = self.permit.request, self.tensor
        self.permit.decoded()
        height, width = tensor.shape[:2]
        self.encoder.check_size(*(self.size if self.scaled else (height, width)))
        if decode.network_pixels(height, width, self.model.contract.input) > max_whole_pixels:
            settle(request.future, TOO_LARGE)
            return
        postprocess: Postprocess | None = None
        if self.encoder.needs_logits:
            postprocess = self.encoder.reduce
        elif self.encoder.is_quick and self.model.provider == "cpu" and self.plain:
            # Packing takes a tenth of a millisecond, and on a CPU no device waits meanwhile; giving
            # it to another thread costs more. A method of a job would make a cycle with its model.
            postprocess = partial(self.encoder.encode_at_once, self.rgb)
        self.model.put(request, tensor, postprocess, wants_logits=self.encoder.needs_logits)

    def _decode(self) -> None:
        stored = self.header.height, self.header.width
        rgb, self.size = decode.network_image(self.pixels, stored, self.network_size)
        self.network_size = rgb.shape[0], rgb.shape[1]
        self.tensor = decode.prepare(rgb, self.model.contract.input)
        # Not held twice, if the tensor is a padded copy.
        self.rgb = self.tensor[: rgb.shape[0], : rgb.shape[1]]
        if self.scaled and self.encoder.needs_image:
            self.rgb = self.pixels(1)[0]
        self.decoded_s = self.clock()
