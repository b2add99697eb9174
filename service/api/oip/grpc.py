"""gRPC of the Open Inference Protocol: `inference.GRPCInferenceService`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message
from grpc import aio

from service.api.call import Call, Calls
from service.api.grpc.handlers import (
    Context,
    malformed,
    read_single_message,
    stream_stream,
    stream_unary,
    unary,
)
from service.api.oip.admin import Admin
from service.api.oip.infer import Inference
from service.api.oip.models import SERVER, Statistics, config, metadata, version_named
from service.api.oip.parameters import flag, refuse_shared_memory
from service.api.oip.tensors import (
    InferRequest,
    InputTensor,
    OutputTensor,
    images_of,
    outputs_asked,
)
from service.api.stubs import inference_pb2 as pb
from service.api.uploads import Uploads
from service.core.segmenter import ModelState, Segmenter, SegmentReply
from service.errors import InvalidParameter

SERVICE: Final = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
Work = Callable[[Call, Any], Awaitable[Message]]


class OipGrpc:
    """Translates the calls of inference.proto."""

    def __init__(
        self,
        segmenter: Segmenter,
        calls: Calls,
        *,
        uploads: Uploads,
        inference: Inference,
        statistics: Statistics,
        admin: Admin,
        ready: Callable[[], bool],
    ) -> None:
        """uploads: as for `OipRest`."""
        self._segmenter = segmenter
        self._calls = calls
        self._uploads = uploads
        self._inference = inference
        self._statistics = statistics
        self._admin = admin
        self._ready = ready

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Makes the service as gRPC takes it."""
        for_callers: dict[str, Work] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
        }
        for_the_admin: dict[str, Work] = {
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._repository_load,
            "RepositoryModelUnload": self._repository_unload,
        }
        make = partial(self._handler, unary)
        handlers = {name: make(name, work) for name, work in for_callers.items()}
        for name, work in for_the_admin.items():
            handlers[name] = make(name, work, admit=self._admit_admin)
        handlers["ModelInfer"] = self._handler(stream_unary, "ModelInfer", self._infer)
        handlers["ModelStreamInfer"] = stream_stream(
            self._calls,
            "ModelStreamInfer",
            pb.ModelInferRequest,
            pb.ModelStreamInferResponse,
            self._stream_infer,
        )
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _handler(
        self,
        kind: Callable[..., grpc.RpcMethodHandler[Any, Any]],
        name: str,
        work: Callable[..., Awaitable[Message]],
        **options: Any,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        request, response = (getattr(pb, f"{name}{end}") for end in ("Request", "Response"))
        return kind(self._calls, name, request, response, work, **options)

    def _admit_admin(self, call: Call, authorization: str | None, api_key: str | None) -> None:
        """Raises: NotAllowed, NotAuthenticated."""
        self._admin.check(authorization)

    async def _server_live(self, call: Call, request: Any) -> Message:
        call.record.probe = True
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, call: Call, request: Any) -> Message:
        call.record.probe = True
        return pb.ServerReadyResponse(ready=self._ready())

    async def _server_metadata(self, call: Call, request: Any) -> Message:
        return ParseDict(SERVER, pb.ServerMetadataResponse())

    async def _model_ready(self, call: Call, request: pb.ModelReadyRequest) -> Message:
        call.record.probe = True
        _, status = version_named(self._segmenter.models(), request.name, request.version)
        return pb.ModelReadyResponse(ready=status.state is ModelState.READY and self._ready())

    async def _model_metadata(self, call: Call, request: pb.ModelMetadataRequest) -> Message:
        found = version_named(self._segmenter.models(), request.name, request.version)
        return ParseDict(metadata(*found), pb.ModelMetadataResponse())

    async def _model_config(self, call: Call, request: pb.ModelConfigRequest) -> Message:
        found = version_named(self._segmenter.models(), request.name, request.version)
        return ParseDict({"config": config(*found)}, pb.ModelConfigResponse())

    async def _model_statistics(self, call: Call, request: pb.ModelStatisticsRequest) -> Message:
        document = self._statistics.to_json(self._segmenter.models(), request.name, request.version)
        return ParseDict(document, pb.ModelStatisticsResponse())

    async def _repository_index(self, call: Call, request: pb.RepositoryIndexRequest) -> Message:
        models = self._admin.index(only_ready=request.ready)
        return ParseDict({"models": models}, pb.RepositoryIndexResponse())

    async def _repository_load(self, call: Call, request: pb.RepositoryModelLoadRequest) -> Message:
        await self._admin.load(request.model_name, request.parameters)
        return pb.RepositoryModelLoadResponse()

    async def _repository_unload(
        self, call: Call, request: pb.RepositoryModelUnloadRequest
    ) -> Message:
        await self._admin.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def _infer(
        self, call: Call, requests: AsyncIterator[pb.ModelInferRequest]
    ) -> pb.ModelInferResponse:
        self._segmenter.check_any(call.time_left())
        with self._uploads.begin() as upload:
            request = await upload.in_time(read_single_message(requests, pb.ModelInferRequest))
            upload.received(request.ByteSize())
            return await self._answer(call, request)

    async def _stream_infer(self, stream: Call, context: Context) -> None:
        """Answers one after the other: no message is read before the last is answered."""
        while True:
            try:
                request = await context.read()
            except DecodeError:
                raise malformed(pb.ModelInferRequest) from None
            if request is aio.EOF:  # type: ignore[attr-defined]  # stubs lack it
                return
            await context.write(await self._item(stream, request))

    async def _item(
        self, stream: Call, request: pb.ModelInferRequest
    ) -> pb.ModelStreamInferResponse:
        with stream.part("ModelInfer", stream.id) as call:
            try:
                call.check_key()
                with self._uploads.begin() as upload:
                    upload.received(request.ByteSize())
                    answer = await self._answer(call, request)
                return pb.ModelStreamInferResponse(infer_response=answer)
            except BaseException as error:
                outcome = call.failed(error)
                if outcome is None:
                    raise
                return pb.ModelStreamInferResponse(
                    error_message=outcome.text,
                    infer_response=pb.ModelInferResponse(id=request.id),
                )

    async def _answer(self, call: Call, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        """Raises: any ServiceError but ModelLoadError."""
        call.asks_for(request.model_name)
        call.uploaded()

        async def read() -> InferRequest:
            return _read(request)

        return await self._inference.answer(
            call, request.model_name, request.model_version, read, _response
        )


def _read(request: pb.ModelInferRequest) -> InferRequest:
    """Raises: InvalidParameter."""
    for output in request.outputs:
        refuse_shared_memory(output.parameters)
    outputs = outputs_asked([output.name for output in request.outputs])
    parameters = _parameters(request.parameters)
    raw = flag(parameters, "binary_data_output", True)
    return InferRequest(
        request.id,
        images_of(_inputs(request)),
        outputs,
        frozenset(outputs if raw else ()),
        parameters,
    )


def _response(
    request: InferRequest, first: SegmentReply, tensors: Sequence[OutputTensor]
) -> pb.ModelInferResponse:
    """Puts elements into raw_output_contents, or, of those not binary, into typed contents."""
    response = pb.ModelInferResponse(
        model_name=first.model, model_version=first.version, id=request.id
    )
    for tensor in tensors:
        output = response.outputs.add(
            name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
        )
        if tensor.name in request.binary:
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


def _parameters(parameters: Mapping[str, pb.InferParameter]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, parameter in parameters.items():
        if (kind := parameter.WhichOneof("parameter_choice")) is not None:
            found[name] = getattr(parameter, kind)
    return found


def _inputs(request: pb.ModelInferRequest) -> list[InputTensor]:
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
        found.append(InputTensor(tensor.name, tensor.datatype, tuple(tensor.shape), data))
    return found
