"""`segmentation.v1.Segmentation`: translates its messages for the segmenter."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

import grpc

from service.api.call import Call, Outcome
from service.api.grpc.handlers import Handlers, Read, Write, read_single_message
from service.api.grpc.messages import FILES, MAX_STRUCTURE_BYTES
from service.api.grpc.stream import Stream
from service.api.models import models_message
from service.api.status import TYPE_PREFIX
from service.api.stubs import segmentation_pb2 as pb
from service.api.uploads import Uploads, too_large
from service.config import ApiConfig
from service.core.outputs.registry import DEFAULT, all_outputs
from service.core.segmenter import Segmenter
from service.core.types import Dtype, Priority, SegmentOptions, SegmentReply, scale_of
from service.errors import InvalidParameter, MessageTooLarge

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Segmentation"].full_name
BY_NUMBER: Final = {
    pb.OUTPUT_UNSPECIFIED: DEFAULT,
    **{pb.Output.Value(f"OUTPUT_{name.upper()}"): name for name in all_outputs()},
}

DTYPES: Final = {
    pb.DTYPE_UNSPECIFIED: Dtype.UINT8,
    pb.DTYPE_UINT8: Dtype.UINT8,
    pb.DTYPE_FLOAT16: Dtype.FLOAT16,
}

PRIORITIES: Final = {
    pb.PRIORITY_UNSPECIFIED: Priority.NORMAL,
    pb.PRIORITY_HIGH: Priority.HIGH,
    pb.PRIORITY_NORMAL: Priority.NORMAL,
    pb.PRIORITY_LOW: Priority.LOW,
}

_BULK: Final = {pb.SegmentRequest.IMAGE_FIELD_NUMBER: FILES}
_STREAM_BULK: Final = {pb.SegmentStreamRequest.REQUEST_FIELD_NUMBER: _BULK}


class Segmentation:
    """Handles the calls of segmentation.proto."""

    def __init__(
        self,
        segmenter: Segmenter,
        config: ApiConfig,
        uploads: Uploads,
        *,
        closing: asyncio.Event,
    ) -> None:
        """closing: see `GrpcServer`."""
        self._segmenter = segmenter
        self._config = config
        self._uploads = uploads
        self._closing = closing

    def handler(self, handlers: Handlers) -> grpc.GenericRpcHandler[Any, Any]:
        """Makes the service as gRPC takes it."""
        max_bytes = self._config.max_image_bytes + MAX_STRUCTURE_BYTES
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Segment": handlers.upload(
                    "Segment",
                    pb.SegmentRequest,
                    self.segment,
                    max_bytes=max_bytes,
                    bulk=_BULK,
                ),
                "SegmentStream": handlers.stream(
                    "SegmentStream",
                    pb.SegmentStreamRequest,
                    self.segment_stream,
                    max_bytes=max_bytes,
                    bulk=_STREAM_BULK,
                ),
                "ListModels": handlers.unary(
                    "ListModels",
                    pb.ListModelsRequest,
                    self.list_models,
                ),
            },
        )

    async def segment(self, call: Call, read: Read[pb.SegmentRequest]) -> pb.SegmentResponse:
        self._segmenter.check_any(call.time_left(), call)
        with self._uploads.begin() as received:
            try:
                request, n_bytes = await read_single_message(read, pb.SegmentRequest)
            except MessageTooLarge:  # with an image, which is so over every transport
                raise too_large(self._config.max_image_bytes) from None
            received(n_bytes)
        call.uploaded()
        return await self._answer(call, request, call.seconds_left())

    async def segment_stream(
        self, call: Call, read: Read[pb.SegmentStreamRequest], write: Write
    ) -> None:
        stream = Stream(
            read,
            write,
            partial(self._item, call),
            window=self._config.stream_window,
            closing=self._closing,
        )
        await stream.run()

    async def list_models(self, call: Call, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        return models_message(self._segmenter.models(), self._segmenter.default_model())

    async def _item(
        self, stream: Call, message: pb.SegmentStreamRequest, fault: InvalidParameter | None
    ) -> pb.SegmentStreamResponse:
        """Answers one image of a stream: to the log and the metrics a Segment like any other."""
        call = stream.part("Segment", f"{stream.id}/{message.id}")
        try:
            with call:
                call.uploaded()
                call.check_key()
                if fault is not None:
                    raise fault
                asked_s = message.deadline_ms / 1000 if message.HasField("deadline_ms") else None
                response = await self._answer(call, message.request, call.seconds_left(asked_s))
                return pb.SegmentStreamResponse(id=message.id, response=response)
        except BaseException:
            if call.outcome is None:
                raise
            return pb.SegmentStreamResponse(id=message.id, error=_item_error(call.outcome))

    async def _answer(
        self, call: Call, request: pb.SegmentRequest, deadline_s: float
    ) -> pb.SegmentResponse:
        """Raises: any ServiceError but ModelLoadError."""
        call.asks_for(request.model or None)
        options = _options(request, deadline_s)
        reply = await self._segmenter.segment(request.image, options, call)
        call.answered(reply)
        return _response(reply)


def _options(request: pb.SegmentRequest, deadline_s: float) -> SegmentOptions:
    """Raises: InvalidParameter."""
    if request.output not in BY_NUMBER:
        raise InvalidParameter(f"there is no output {request.output}: use one of the Output enum")
    if request.dtype not in DTYPES:
        raise InvalidParameter(f"there is no dtype {request.dtype}: use one of the Dtype enum")
    if request.priority not in PRIORITIES:
        raise InvalidParameter(
            f"there is no priority {request.priority}: use one of the Priority enum"
        )
    return SegmentOptions(
        model=request.model or None,
        version=request.version or None,
        output=BY_NUMBER[request.output],
        alpha=request.alpha if request.HasField("alpha") else 0.5,
        outlines=request.outlines,
        dtype=DTYPES[request.dtype],
        classes=tuple(request.classes),
        deadline_s=deadline_s,
        priority=PRIORITIES[request.priority],
        scale=scale_of(request.scale) if request.scale else "auto",
    )


def _response(reply: SegmentReply) -> pb.SegmentResponse:
    t = reply.timings
    return pb.SegmentResponse(
        body=reply.body,
        media_type=reply.media_type,
        height_px=reply.height,
        width_px=reply.width,
        model=reply.model,
        version=reply.version,
        timings=pb.Timings(
            decode_s=t.decode_s, queue_s=t.queue_s, infer_s=t.infer_s, render_s=t.render_s
        ),
        batch_size=reply.batch_size,
        network_height_px=reply.network_size[0],
        network_width_px=reply.network_size[1],
    )


def _item_error(outcome: Outcome) -> pb.ItemError:
    return pb.ItemError(
        code=outcome.status.code.value[0],
        message=outcome.text,
        type=TYPE_PREFIX + outcome.status.kind,
        retry_after_ms=None if outcome.wait_s is None else 1000 * outcome.wait_s,
    )
