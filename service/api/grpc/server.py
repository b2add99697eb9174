"""gRPC: `segmentation.v1.Segmentation`, health and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service.api.grpc.api_keys import RpcGate
from service.api.grpc.lifecycle import (
    Context,
    begin,
    caller_name,
    check_key,
    fail,
    only,
    outcome,
    seconds_left,
)
from service.api.grpc.stream import NOT_THE_PROTOCOL, Stream
from service.api.http.upload import Uploads
from service.api.keys import Keys
from service.api.models import default_name, known_name, models_message
from service.api.stubs import segmentation_pb2 as pb
from service.core.segmenter import Dtype, Output, Priority, Segmenter, SegmentOptions, SegmentReply
from service.errors import InvalidParameter
from service.telemetry import RequestRecord, Telemetry

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Segmentation"].full_name
OUTPUTS: Final = {
    pb.OUTPUT_UNSPECIFIED: Output.LABEL_MAP,
    pb.OUTPUT_LABEL_MAP: Output.LABEL_MAP,
    pb.OUTPUT_OVERLAY: Output.OVERLAY,
    pb.OUTPUT_COLOR: Output.COLOR,
    pb.OUTPUT_JSON: Output.JSON,
    pb.OUTPUT_RLE: Output.RLE,
    pb.OUTPUT_POLYGONS: Output.POLYGONS,
    pb.OUTPUT_PROBABILITIES: Output.PROBABILITIES,
    pb.OUTPUT_CONFIDENCE: Output.CONFIDENCE,
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

# The other fields of a request around its image.
MESSAGE_OVERHEAD_BYTES: Final = 64 * 1024
COMPRESSIONS: Final = {
    "none": grpc.Compression.NoCompression,
    "gzip": grpc.Compression.Gzip,
}


@dataclass(frozen=True, slots=True)
class RpcOptions:
    """max_image_bytes: cap of an upload. deadline_s: for calls that bring none.

    default_model: as configured; None when the only model is the default. stream_window: pictures
    of one stream that are read and not answered. compression: of answers, a key of COMPRESSIONS.
    """

    max_image_bytes: int
    deadline_s: float
    default_model: str | None = None
    stream_window: int = 16
    compression: str = "none"


class RpcServer:
    """The gRPC server: `bind`, `start`, `set_serving`, then `retire` and `stop`."""

    def __init__(
        self,
        segmenter: Segmenter,
        telemetry: Telemetry,
        options: RpcOptions,
        uploads: Uploads,
        max_message_bytes: int = 0,
        keys: Keys | None = None,
    ) -> None:
        """Must be made inside the event loop that runs it. max_message_bytes: if some service needs
        more than the largest upload. keys: None lets everybody in."""
        self._server = aio.server(
            interceptors=() if keys is None else (RpcGate(keys, telemetry),),
            options=[
                (
                    "grpc.max_receive_message_length",
                    max(options.max_image_bytes, max_message_bytes) + MESSAGE_OVERHEAD_BYTES,
                ),
                # What the largest accepted image makes is always sent.
                ("grpc.max_send_message_length", -1),
                # Else a second server would silently share the port.
                ("grpc.so_reuseport", 0),
            ],
            compression=COMPRESSIONS[options.compression],
        )
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # stubs lack it
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._segmentation = Segmentation(segmenter, telemetry, options, uploads)
        self._server.add_generic_rpc_handlers((self._segmentation.handler(),))
        self._services = [SERVICE]

    def add(self, service: str, handler: grpc.GenericRpcHandler[Any, Any]) -> None:
        """One more service, before `start`. service: its full name."""
        self._server.add_generic_rpc_handlers((handler,))
        self._services.append(service)

    def bind(self, address: str) -> int:
        """Listens on `host:port` and returns the port. Raises: OSError when it is taken."""
        try:
            return self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}") from error

    async def start(self) -> None:
        reflection.enable_server_reflection(
            (*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        await self.set_serving(False)
        await self._server.start()

    async def set_serving(self, serving: bool) -> None:
        """What grpc.health.v1 says of the server and of each of its services."""
        kinds = health_pb2.HealthCheckResponse
        status = kinds.SERVING if serving else kinds.NOT_SERVING
        for service in (health.OVERALL_HEALTH, *self._services):
            await self._health.set(service, status)

    async def retire(self) -> None:
        """Not serving, for good."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        """Takes no new calls nor pictures, and cancels calls still running after `grace_s`."""
        self._segmentation.close_streams()
        await self._server.stop(grace_s)


class Segmentation:
    """The calls of proto/segmentation/v1/segmentation.proto."""

    def __init__(
        self, segmenter: Segmenter, telemetry: Telemetry, options: RpcOptions, uploads: Uploads
    ) -> None:
        self._segmenter = segmenter
        self._telemetry = telemetry
        self._options = options
        self._uploads = uploads
        self._closing = asyncio.Event()

    def close_streams(self) -> None:
        """They read no more, send the answers they owe, and end."""
        self._closing.set()

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """The service as gRPC takes it.

        Segment is on the wire what the proto says. Here it is a stream of requests, of which it
        reads the one: so that a call can be refused before its picture is read, and timed while.
        """
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Segment": grpc.stream_unary_rpc_method_handler(
                    self.Segment,
                    request_deserializer=pb.SegmentRequest.FromString,
                    response_serializer=pb.SegmentResponse.SerializeToString,
                ),
                "SegmentStream": grpc.stream_stream_rpc_method_handler(
                    self.SegmentStream,
                    request_deserializer=pb.SegmentStreamRequest.FromString,
                    response_serializer=pb.SegmentStreamResponse.SerializeToString,
                ),
                "ListModels": grpc.unary_unary_rpc_method_handler(
                    self.ListModels,
                    request_deserializer=pb.ListModelsRequest.FromString,
                    response_serializer=pb.ListModelsResponse.SerializeToString,
                ),
            },
        )

    async def Segment(
        self, requests: AsyncIterator[pb.SegmentRequest], context: Context
    ) -> pb.SegmentResponse:
        record = begin("Segment", context)
        try:
            self._segmenter.check_any(context.time_remaining())
            with self._uploads.begin() as upload:
                request = await upload.in_time(only(requests, "SegmentRequest", NOT_THE_PROTOCOL))
                upload.received(len(request.image))
            record.restart()
            record.timed = True
            return await self._segmented(
                request, record, seconds_left(context, self._options.deadline_s)
            )
        except BaseException as error:
            await fail(error, record, context)
        finally:
            self._telemetry.finished(record)

    async def SegmentStream(
        self, _: AsyncIterator[pb.SegmentStreamRequest], context: Context
    ) -> None:
        record = begin("SegmentStream", context)
        stream = Stream(
            context.read,
            context.write,
            partial(self._item, record.request_id, context),
            window=self._options.stream_window,
            closing=self._closing,
        )
        try:
            await stream.run()
        except BaseException as error:
            await fail(error, record, context)
        finally:
            self._telemetry.finished(record)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        record = begin("ListModels", context)
        try:
            models = self._segmenter.models()
            return models_message(models, default_name(models, self._options.default_model))
        except BaseException as error:
            await fail(error, record, context)
        finally:
            self._telemetry.finished(record)

    async def _item(
        self,
        stream_id: str,
        context: Context,
        message: pb.SegmentStreamRequest,
        fault: InvalidParameter | None,
    ) -> pb.SegmentStreamResponse:
        """One picture of a stream: to the log and the metrics a Segment like any other."""
        record = RequestRecord("grpc", "Segment", f"{stream_id}/{message.id}")
        record.code, record.timed = grpc.StatusCode.OK.name, True
        record.caller = caller_name()
        try:
            check_key()
            if fault is not None:
                raise fault
            own_s = message.deadline_ms / 1000 or self._options.deadline_s
            deadline_s = min(own_s, seconds_left(context, self._options.deadline_s))
            response = await self._segmented(message.request, record, deadline_s)
            return pb.SegmentStreamResponse(id=message.id, response=response)
        except BaseException as error:
            end = outcome(error, record, context)
            if end is None:
                raise
            return pb.SegmentStreamResponse(id=message.id, error=end.item_error())
        finally:
            self._telemetry.finished(record)

    async def _segmented(
        self, request: pb.SegmentRequest, record: RequestRecord, deadline_s: float
    ) -> pb.SegmentResponse:
        """Raises: any ServiceError but ModelLoadError."""
        models = self._segmenter.models()
        record.model = known_name(models, self._options.default_model, request.model)
        options = self._translated(request, deadline_s)
        reply = await self._segmenter.segment(request.image, options)
        record.timings, record.height, record.width = reply.timings, reply.height, reply.width
        return _response(reply)

    def _translated(self, request: pb.SegmentRequest, deadline_s: float) -> SegmentOptions:
        """Raises: InvalidParameter."""
        if request.output not in OUTPUTS:
            raise InvalidParameter(
                f"there is no output {request.output}: use one of the Output enum"
            )
        if request.dtype not in DTYPES:
            raise InvalidParameter(f"there is no dtype {request.dtype}: use one of the Dtype enum")
        if request.priority not in PRIORITIES:
            raise InvalidParameter(
                f"there is no priority {request.priority}: use one of the Priority enum"
            )
        return SegmentOptions(
            model=request.model or None,
            version=request.version or None,
            output=OUTPUTS[request.output],
            alpha=request.alpha if request.HasField("alpha") else 0.5,
            outlines=request.outlines,
            dtype=DTYPES[request.dtype],
            classes=tuple(request.classes),
            deadline_s=deadline_s,
            priority=PRIORITIES[request.priority],
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
    )
