"""gRPC of the Open Inference Protocol: `inference.GRPCInferenceService`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message

from service.api.grpc.lifecycle import Context, begin, check_key, fail, only, outcome, seconds_left
from service.api.http.upload import Uploads
from service.api.oip.admin import Admin
from service.api.oip.infer import segment_all
from service.api.oip.json_codec import flag, refuse_shared_memory
from service.api.oip.models import SERVER, Statistics, config, metadata, version_named
from service.api.oip.parameters import segment_request
from service.api.oip.rest import OipOptions
from service.api.oip.tensors import Answer, Input, answers, outputs_asked, pictures
from service.api.stubs import inference_pb2 as pb
from service.core.segmenter import ModelState, Segmenter, SegmentReply
from service.errors import InvalidParameter
from service.telemetry import RequestRecord, Telemetry

SERVICE: Final = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
NOT_A_REQUEST: Final = (
    "the message is no ModelInferRequest: use stubs of the Open Inference Protocol"
)
Call = Callable[[Any, Context, RequestRecord], Awaitable[Message]]


class OipRpc:
    """The calls of proto/inference/inference.proto."""

    def __init__(
        self,
        segmenter: Segmenter,
        telemetry: Telemetry,
        options: OipOptions,
        uploads: Uploads,
        statistics: Statistics,
        admin: Admin,
        ready: Callable[[], bool],
    ) -> None:
        """As `OipRest`."""
        self._segmenter = segmenter
        self._telemetry = telemetry
        self._options = options
        self._uploads = uploads
        self._statistics = statistics
        self._admin = admin
        self._ready = ready

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """The service as gRPC takes it. ModelInfer reads its one message itself, as Segment does:
        a call can be refused before."""
        calls: dict[str, Call] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._repository_load,
            "RepositoryModelUnload": self._repository_unload,
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._called(name, call),
                request_deserializer=getattr(pb, f"{name}Request").FromString,
                response_serializer=getattr(pb, f"{name}Response").SerializeToString,
            )
            for name, call in calls.items()
        }
        handlers["ModelInfer"] = grpc.stream_unary_rpc_method_handler(
            self._infer,
            request_deserializer=pb.ModelInferRequest.FromString,
            response_serializer=pb.ModelInferResponse.SerializeToString,
        )
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._stream_infer,
            request_deserializer=pb.ModelInferRequest.FromString,
            response_serializer=pb.ModelStreamInferResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _called(self, name: str, call: Call) -> Callable[[Any, Context], Awaitable[Message]]:
        probe = name in ("ServerLive", "ServerReady", "ModelReady")

        async def called(request: Any, context: Context) -> Message:
            record = begin(name, context)
            record.probe = probe
            try:
                return await call(request, context, record)
            except BaseException as error:
                await fail(error, record, context)
            finally:
                self._telemetry.finished(record)

        return called

    async def _server_live(self, request: Any, context: Context, record: RequestRecord) -> Message:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, request: Any, context: Context, record: RequestRecord) -> Message:
        return pb.ServerReadyResponse(ready=self._ready())

    async def _server_metadata(
        self, request: Any, context: Context, record: RequestRecord
    ) -> Message:
        return ParseDict(SERVER, pb.ServerMetadataResponse())

    async def _model_ready(
        self, request: pb.ModelReadyRequest, context: Context, record: RequestRecord
    ) -> Message:
        _, status = version_named(self._segmenter.models(), request.name, request.version)
        return pb.ModelReadyResponse(ready=status.state is ModelState.READY and self._ready())

    async def _model_metadata(
        self, request: pb.ModelMetadataRequest, context: Context, record: RequestRecord
    ) -> Message:
        found = version_named(self._segmenter.models(), request.name, request.version)
        return ParseDict(metadata(*found), pb.ModelMetadataResponse())

    async def _model_config(
        self, request: pb.ModelConfigRequest, context: Context, record: RequestRecord
    ) -> Message:
        found = version_named(self._segmenter.models(), request.name, request.version)
        return ParseDict({"config": config(*found)}, pb.ModelConfigResponse())

    async def _model_statistics(
        self, request: pb.ModelStatisticsRequest, context: Context, record: RequestRecord
    ) -> Message:
        document = self._statistics.to_json(self._segmenter.models(), request.name, request.version)
        return ParseDict(document, pb.ModelStatisticsResponse())

    async def _repository_index(
        self, request: pb.RepositoryIndexRequest, context: Context, record: RequestRecord
    ) -> Message:
        self._admin.check(_authorization(context))
        models = self._admin.index(only_ready=request.ready)
        return ParseDict({"models": models}, pb.RepositoryIndexResponse())

    async def _repository_load(
        self, request: pb.RepositoryModelLoadRequest, context: Context, record: RequestRecord
    ) -> Message:
        self._admin.check(_authorization(context))
        await self._admin.load(request.model_name, request.parameters)
        return pb.RepositoryModelLoadResponse()

    async def _repository_unload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context, record: RequestRecord
    ) -> Message:
        self._admin.check(_authorization(context))
        await self._admin.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def _infer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> pb.ModelInferResponse:
        record = begin("ModelInfer", context)
        try:
            self._segmenter.check_any(context.time_remaining())
            with self._uploads.begin() as upload:
                request = await upload.in_time(only(requests, "ModelInferRequest", NOT_A_REQUEST))
                upload.received(request.ByteSize())
                return await self._answer(request, context, record)
        except BaseException as error:
            await fail(error, record, context)
        finally:
            self._telemetry.finished(record)

    async def _stream_infer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """One after the other: the next message is not read before the last is answered."""
        try:
            async for request in requests:
                record = begin("ModelInfer", context)
                try:
                    check_key()
                    with self._uploads.begin() as upload:
                        upload.received(request.ByteSize())
                        answer = await self._answer(request, context, record)
                    yield pb.ModelStreamInferResponse(infer_response=answer)
                except BaseException as error:
                    end = outcome(error, record, context)
                    if end is None:
                        raise
                    yield pb.ModelStreamInferResponse(
                        error_message=end.text, infer_response=pb.ModelInferResponse(id=request.id)
                    )
                finally:
                    self._telemetry.finished(record)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, NOT_A_REQUEST)

    async def _answer(
        self, request: pb.ModelInferRequest, context: Context, record: RequestRecord
    ) -> pb.ModelInferResponse:
        """Raises: any ServiceError but ModelLoadError."""
        record.restart()
        record.timed = True
        began = time.perf_counter()
        found, status = version_named(
            self._segmenter.models(), request.model_name, request.model_version
        )
        record.model = found.name
        try:
            outputs = _outputs(request)
            parameters = _parameters(request.parameters)
            raw = flag(parameters, "binary_data_output", True)
            draft = segment_request(
                request.model_name,
                request.model_version,
                outputs,
                parameters,
                seconds_left(context, self._options.deadline_s),
            )
            replies = await segment_all(
                self._segmenter,
                pictures(_inputs(request)),
                draft,
                outputs,
                max_pixels=self._options.max_pixels,
                as_numbers=not raw,
            )
        except BaseException:
            self._statistics.failed(found.name, status.version, time.perf_counter() - began)
            raise
        first = replies[0]
        record.timings, record.height, record.width = first.timings, first.height, first.width
        tensors = answers(outputs, replies)
        response = await asyncio.to_thread(_response, request, first, tensors, raw)
        self._statistics.answered(replies, time.perf_counter() - began)
        return response


def _response(
    request: pb.ModelInferRequest, first: SegmentReply, tensors: Sequence[Answer], raw: bool
) -> pb.ModelInferResponse:
    """raw: the elements as bytes; else in the typed contents of each tensor."""
    response = pb.ModelInferResponse(
        model_name=first.model, model_version=first.version, id=request.id
    )
    for tensor in tensors:
        output = response.outputs.add(
            name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
        )
        if raw:
            response.raw_output_contents.append(tensor.to_bytes())
        elif tensor.datatype == "BYTES":
            output.contents.bytes_contents.extend(tensor.files())
        else:
            contents: Any = output.contents
            is_float = tensor.datatype == "FP32"
            field = contents.fp32_contents if is_float else contents.uint_contents
            for some in tensor.numbers():
                field.extend(some.tolist())
    return response


def _authorization(context: Context) -> str | None:
    value = next((v for k, v in context.invocation_metadata() or () if k == "authorization"), None)
    return value if isinstance(value, str) else None


def _parameters(parameters: Mapping[str, pb.InferParameter]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, parameter in parameters.items():
        if (kind := parameter.WhichOneof("parameter_choice")) is not None:
            found[name] = getattr(parameter, kind)
    return found


def _outputs(request: pb.ModelInferRequest) -> tuple[str, ...]:
    """Raises: InvalidParameter."""
    for output in request.outputs:
        refuse_shared_memory(output.parameters)
    return outputs_asked([output.name for output in request.outputs])


def _inputs(request: pb.ModelInferRequest) -> list[Input]:
    """Raises: InvalidParameter."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidParameter(
            f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs: send one "
            "for each"
        )
    found = []
    for number, tensor in enumerate(request.inputs):
        refuse_shared_memory(tensor.parameters)
        if raw and tensor.HasField("contents"):
            raise InvalidParameter(
                "the elements are in contents and in raw_input_contents: send them once"
            )
        data: memoryview | list[Any]
        if raw:
            data = memoryview(raw[number])
        elif tensor.datatype == "BYTES":
            data = list(tensor.contents.bytes_contents)
        else:
            data = list(tensor.contents.uint_contents)
        found.append(Input(tensor.name, tensor.datatype, tuple(tensor.shape), data))
    return found
