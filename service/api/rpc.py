"""gRPC: `segmentation.v1.Segmentation`, health and reflection."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from proto.segmentation.v1 import segmentation_pb2 as pb
from service.api.listing import default_name, known_name
from service.api.request_id import HEADER, request_id
from service.api.status import counts_as_latency, retry_after_s, status_of
from service.api.upload import Uploads
from service.core.segmenter import Dtype, Output, Priority, Segmenter, SegmentReply, SegmentRequest
from service.errors import DeadlineExceeded, InvalidParameter, ServiceError
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
PUSHBACK: Final = "grpc-retry-pushback-ms"
"""Trailing metadata that gRPC's own retry policy obeys; negative means do not retry.

Source: gRPC proposal A6, client retries.
"""

_log = logging.getLogger("fcn.grpc")
Context = aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class RpcOptions:
    """max_image_bytes: cap of an upload. deadline_s: for calls that bring none.

    default_model: as configured; None when the only model is the default.
    """

    max_image_bytes: int
    deadline_s: float
    default_model: str | None = None


class RpcServer:
    """The gRPC server: `bind`, `start`, `set_serving`, then `retire` and `stop`."""

    def __init__(
        self, segmenter: Segmenter, telemetry: Telemetry, options: RpcOptions, uploads: Uploads
    ) -> None:
        """Must be made inside the event loop that runs it."""
        self._server = aio.server(
            options=[
                (
                    "grpc.max_receive_message_length",
                    options.max_image_bytes + MESSAGE_OVERHEAD_BYTES,
                ),
                # What the largest accepted image makes is always sent.
                ("grpc.max_send_message_length", -1),
                # Else a second server would silently share the port.
                ("grpc.so_reuseport", 0),
            ]
        )
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # stubs lack it
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        segmentation = Segmentation(segmenter, telemetry, options, uploads)
        self._server.add_generic_rpc_handlers((segmentation.handler(),))
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )

    def bind(self, address: str) -> int:
        """Listens on `host:port` and returns the port. Raises: OSError when it is taken."""
        try:
            return self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}") from error

    async def start(self) -> None:
        await self.set_serving(False)
        await self._server.start()

    async def set_serving(self, serving: bool) -> None:
        """What grpc.health.v1 says of the server and of the Segmentation service."""
        kinds = health_pb2.HealthCheckResponse
        status = kinds.SERVING if serving else kinds.NOT_SERVING
        for service in (health.OVERALL_HEALTH, SERVICE):
            await self._health.set(service, status)

    async def retire(self) -> None:
        """Not serving, for good."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        """Takes no new calls, and cancels those still running after `grace_s`."""
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
        record = _begin("Segment", context)
        try:
            self._segmenter.check_any(context.time_remaining())
            with self._uploads.begin() as upload:
                request = await upload.in_time(_only(requests))
                upload.received(len(request.image))
            record.restart()
            record.timed = True
            models = self._segmenter.models()
            record.model = known_name(models, self._options.default_model, request.model)
            reply = await self._segmenter.segment(self._translated(request, context))
            record.timings, record.height, record.width = reply.timings, reply.height, reply.width
            return _response(reply)
        except BaseException as error:
            await _fail(error, record, context)
        finally:
            self._telemetry.finished(record)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        record = _begin("ListModels", context)
        try:
            return self._models()
        except BaseException as error:
            await _fail(error, record, context)
        finally:
            self._telemetry.finished(record)

    def _translated(self, request: pb.SegmentRequest, context: Context) -> SegmentRequest:
        """Raises: InvalidParameter, DeadlineExceeded."""
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
        deadline_s = context.time_remaining()
        if deadline_s is None:
            deadline_s = self._options.deadline_s
        elif deadline_s <= 0:
            raise DeadlineExceeded("the deadline passed before the call began: allow more time")
        return SegmentRequest(
            body=request.image,
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

    def _models(self) -> pb.ListModelsResponse:
        models = self._segmenter.models()
        default = default_name(models, self._options.default_model)
        return pb.ListModelsResponse(
            models=[
                pb.Model(
                    name=model.name,
                    version=v.version,
                    state=str(v.state),
                    is_default=model.name == default and v.version == model.default_version,
                    architecture=v.contract.architecture,
                    precision=v.precision,
                    provider=v.provider,
                    classes=[
                        pb.ClassInfo(
                            id=c.id, name=c.name, color_rgb=c.color, description=c.description
                        )
                        for c in v.contract.classes
                    ],
                    contract_json=v.contract.to_json(),
                )
                for model in models
                for v in model.versions
            ]
        )


async def _only(requests: AsyncIterator[pb.SegmentRequest]) -> pb.SegmentRequest:
    """The call's one message. Raises: InvalidParameter when it was closed without any."""
    async for request in requests:
        return request
    raise InvalidParameter("the call has no message: send one SegmentRequest")


def _begin(method: str, context: Context) -> RequestRecord:
    """The call's record, with the caller's request id if it brought a good one."""
    offered = next((v for k, v in context.invocation_metadata() or () if k == HEADER), None)
    record = RequestRecord(
        "grpc", method, request_id(offered if isinstance(offered, str) else None)
    )
    record.code = grpc.StatusCode.OK.name
    context.set_trailing_metadata(((HEADER, record.request_id),))
    return record


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


async def _fail(error: BaseException, record: RequestRecord, context: Context) -> NoReturn:
    """Ends the call with the error's row of the table. Always raises."""
    metadata = [(HEADER, record.request_id)]
    if isinstance(error, ServiceError):
        row, text = status_of(error), f"{error.title}: {error}"
        code = row.code
        record.timed = record.timed and counts_as_latency(row.http)
        wait_s = retry_after_s(error)
        if wait_s is not None:
            metadata.append((PUSHBACK, str(1000 * wait_s)))
    elif isinstance(error, Exception):
        _log.exception("call %s failed", record.request_id)
        code = grpc.StatusCode.INTERNAL
        text = "Internal error: try again, and report the request id if it recurs"
    else:
        # The caller left, or gRPC ended the call at its deadline: nobody is told.
        late = context.time_remaining() == 0
        code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
        record.code, record.timed = code.name, record.timed and late
        raise error
    record.code, record.error = code.name, text
    await context.abort(code, text, tuple(metadata))
    raise error  # unreachable: abort raises
