"""gRPC of the Open Inference Protocol: `inference.GRPCInferenceService`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message
from grpc import aio

from service.api.call import Call, Calls
from service.api.grpc.closing import unless_set
from service.api.grpc.handlers import (
    Context,
    malformed,
    read_single_message,
    stream_stream,
    stream_unary,
    unary,
)
from service.api.keys import ADMIN
from service.api.oip.infer import Inference
from service.api.oip.operations import Document, Operations
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
from service.core.segmenter import Segmenter
from service.core.types import SegmentOptions, SegmentReply
from service.errors import InvalidParameter, ShuttingDown

SERVICE: Final = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_PROBES: Final = ("ServerLive", "ServerReady", "ModelReady")
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
        operations: Operations,
        closing: asyncio.Event,
    ) -> None:
        """uploads: as for `OipRest`. closing: see `GrpcServer`."""
        self._segmenter = segmenter
        self._calls = calls
        self._uploads = uploads
        self._inference = inference
        self._operations = operations
        self._closing = closing

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Makes the service as gRPC takes it."""
        o = self._operations
        documents: dict[str, Callable[..., Document]] = {
            "ServerLive": o.server_live,
            "ServerReady": o.server_ready,
            "ServerMetadata": o.server_metadata,
            "ModelReady": o.model_ready,
            "ModelMetadata": o.model_metadata,
            "ModelConfig": lambda **fields: {"config": o.model_config(**fields)},
            "ModelStatistics": o.model_statistics,
            "RepositoryIndex": lambda **fields: {"models": o.repository_index(**fields)},
        }
        works: dict[str, Work] = {
            **{name: _documented(name, operation) for name, operation in documents.items()},
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        handlers = {name: self._unary(name, work) for name, work in works.items()}
        handlers["ModelInfer"] = stream_unary(
            self._calls, "ModelInfer", pb.ModelInferRequest, pb.ModelInferResponse, self._infer
        )
        handlers["ModelStreamInfer"] = stream_stream(
            self._calls,
            "ModelStreamInfer",
            pb.ModelInferRequest,
            pb.ModelStreamInferResponse,
            self._stream_infer,
        )
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _unary(self, name: str, work: Work) -> grpc.RpcMethodHandler[Any, Any]:
        request, response = (getattr(pb, f"{name}{end}") for end in ("Request", "Response"))
        admit = _admit_admin if name.startswith("Repository") else Call.authenticate
        return unary(self._calls, name, request, response, work, admit)

    async def _load(self, call: Call, request: pb.RepositoryModelLoadRequest) -> Message:
        await self._operations.load(request.model_name, request.parameters)
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, call: Call, request: pb.RepositoryModelUnloadRequest) -> Message:
        await self._operations.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def _infer(
        self, call: Call, requests: AsyncIterator[pb.ModelInferRequest]
    ) -> pb.ModelInferResponse:
        self._segmenter.check_any(call.time_left())
        with self._uploads.begin() as received:
            request = await self._uploads.in_time(
                read_single_message(requests, pb.ModelInferRequest)
            )
            received(request.ByteSize())
            return await self._answer(call, request)

    async def _stream_infer(self, stream: Call, context: Context) -> None:
        """Answers one after the other: no message is read before the last is answered."""
        while True:
            try:
                request = await unless_set(self._closing, context.read())
            except DecodeError:
                raise malformed(pb.ModelInferRequest) from None
            if request is None:
                raise ShuttingDown()
            if request is aio.EOF:  # type: ignore[attr-defined]  # stubs lack it
                return
            await context.write(await self._item(stream, request))

    async def _item(
        self, stream: Call, request: pb.ModelInferRequest
    ) -> pb.ModelStreamInferResponse:
        call = stream.part("ModelInfer", stream.id)
        try:
            with call:
                call.check_key()
                with self._uploads.begin() as received:
                    received(request.ByteSize())
                    answer = await self._answer(call, request)
                return pb.ModelStreamInferResponse(infer_response=answer)
        except BaseException:
            if call.outcome is None:
                raise
            return pb.ModelStreamInferResponse(
                error_message=call.outcome.text,
                infer_response=pb.ModelInferResponse(id=request.id),
            )

    async def _answer(self, call: Call, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        """Raises: any ServiceError but ModelLoadError."""
        model, version = request.model_name, request.model_version
        call.asks_for(model)
        call.uploaded()
        # Of two errors, the one that REST finds before the upload.
        self._segmenter.check(SegmentOptions(model, version, deadline_s=call.seconds_left()))

        async def read() -> InferRequest:
            return _read(request)

        return await self._inference.answer(call, model, version, read, _response)


def _admit_admin(call: Call, authorization: str | None, api_key: str | None) -> None:
    """Raises: NotAllowed, NotAuthenticated, LimitExceeded."""
    call.authenticate(authorization, api_key, ADMIN)


def _documented(name: str, operation: Callable[..., Document]) -> Work:
    """Makes the message from the document that the operation answers the request's fields with."""
    response = getattr(pb, f"{name}Response")

    async def work(call: Call, request: Message) -> Message:
        call.record.probe = name in _PROBES
        fields = {field.name: getattr(request, field.name) for field in request.DESCRIPTOR.fields}
        message: Message = ParseDict(operation(**fields), response(), ignore_unknown_fields=True)
        return message

    return work


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
