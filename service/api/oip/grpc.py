"""gRPC of the Open Inference Protocol: `inference.GRPCInferenceService`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from service.api.call import Call
from service.api.grpc.closing import unless_set
from service.api.grpc.handlers import Handlers, Read, Write, read_single_message
from service.api.grpc.messages import FILES, NUMBERS, Bulk
from service.api.keys import ADMIN
from service.api.oip.infer import Inference
from service.api.oip.operations import Document, Operations
from service.api.oip.parameters import flag, refuse_shared_memory, size_text
from service.api.oip.tensors import (
    Data,
    InferRequest,
    InputTensor,
    OutputTensor,
    images_of,
    outputs_asked,
)
from service.api.oip.written import read_numbers
from service.api.stubs import inference_pb2 as pb
from service.api.uploads import Received, Uploads
from service.core.segmenter import Segmenter
from service.core.types import SegmentOptions, SegmentReply
from service.errors import InvalidParameter, ShuttingDown

SERVICE: Final = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_PROBES: Final = ("ServerLive", "ServerReady", "ModelReady")
_BULK: Final[Bulk] = {
    pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER: FILES,
    pb.ModelInferRequest.INPUTS_FIELD_NUMBER: {
        pb.ModelInferRequest.InferInputTensor.CONTENTS_FIELD_NUMBER: {
            pb.InferTensorContents.BYTES_CONTENTS_FIELD_NUMBER: FILES,
            pb.InferTensorContents.UINT_CONTENTS_FIELD_NUMBER: NUMBERS,
        }
    },
}
_INLINE: Final = 1 << 14
"""Fewer numbers are read sooner than a thread is woken."""
Work = Callable[[Call, Any], Awaitable[Message]]


class OipGrpc:
    """Translates the calls of inference.proto."""

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        uploads: Uploads,
        inference: Inference,
        operations: Operations,
        max_bytes: int,
        closing: asyncio.Event,
    ) -> None:
        """uploads: as for `OipRest`. max_bytes: of a request. closing: see `GrpcServer`."""
        self._segmenter = segmenter
        self._max_bytes = max_bytes
        self._uploads = uploads
        self._inference = inference
        self._operations = operations
        self._closing = closing

    def handler(self, handlers: Handlers) -> grpc.GenericRpcHandler[Any, Any]:
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
        found = {name: self._unary(handlers, name, work) for name, work in works.items()}
        found["ModelInfer"] = handlers.upload(
            "ModelInfer",
            pb.ModelInferRequest,
            self._infer,
            max_bytes=self._max_bytes,
            bulk=_BULK,
        )
        found["ModelStreamInfer"] = handlers.stream(
            "ModelStreamInfer",
            pb.ModelInferRequest,
            self._stream_infer,
            max_bytes=self._max_bytes,
            bulk=_BULK,
        )
        return grpc.method_handlers_generic_handler(SERVICE, found)

    def _unary(self, handlers: Handlers, name: str, work: Work) -> grpc.RpcMethodHandler[Any, Any]:
        request = getattr(pb, f"{name}Request")
        admit = _admit_admin if name.startswith("Repository") else Call.authenticate
        return handlers.unary(name, request, work, admit)

    async def _load(self, call: Call, request: pb.RepositoryModelLoadRequest) -> Message:
        await self._operations.load(request.model_name, request.parameters)
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, call: Call, request: pb.RepositoryModelUnloadRequest) -> Message:
        await self._operations.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def _infer(self, call: Call, read: Read[pb.ModelInferRequest]) -> pb.ModelInferResponse:
        self._segmenter.check_any(call.time_left(), call)
        with self._uploads.begin() as received:
            request, n_bytes = await read_single_message(read, pb.ModelInferRequest)
            received(n_bytes)
            return await self._answer(call, request, received)

    async def _stream_infer(
        self, stream: Call, read: Read[pb.ModelInferRequest], write: Write
    ) -> None:
        """Answers one after the other: no message is read before the last is answered."""
        closed = False

        async def next_message() -> tuple[pb.ModelInferRequest, int] | None:
            nonlocal closed
            found = await read()
            closed = found is None
            return found

        while (found := await unless_set(self._closing, next_message())) is not None:
            await write(await self._item(stream, *found))
        if not closed:
            raise ShuttingDown()

    async def _item(
        self, stream: Call, request: pb.ModelInferRequest, n_bytes: int
    ) -> pb.ModelStreamInferResponse:
        call = stream.part("ModelInfer", stream.id)
        try:
            with call:
                call.check_key()
                with self._uploads.begin() as received:
                    received(n_bytes)
                    answer = await self._answer(call, request, received)
                return pb.ModelStreamInferResponse(infer_response=answer)
        except BaseException:
            if call.outcome is None:
                raise
            return pb.ModelStreamInferResponse(
                error_message=call.outcome.text,
                infer_response=pb.ModelInferResponse(id=request.id),
            )

    async def _answer(
        self, call: Call, request: pb.ModelInferRequest, received: Received
    ) -> pb.ModelInferResponse:
        """Raises: any ServiceError but ModelLoadError."""
        model, version = request.model_name, request.model_version
        call.asks_for(model)
        call.uploaded()
        # Of two errors, the one that REST finds before the upload.
        options = SegmentOptions(model, version, deadline_s=call.seconds_left())
        self._segmenter.check(options, call)

        async def read() -> InferRequest:
            if any(len(tensor.contents.uint_contents) > _INLINE for tensor in request.inputs):
                return await asyncio.to_thread(_read, request)
            return _read(request)

        return await self._inference.answer(call, model, version, read, _response, received)


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
    response.parameters["network_size"].string_param = size_text(first)
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
        data: Data
        if raw:
            data = memoryview(raw[number])
        elif tensor.datatype == "BYTES":
            data = list(tensor.contents.bytes_contents)
        else:
            data = memoryview(read_numbers(tensor.contents.uint_contents, tensor.name[:80]))
        found.append(InputTensor(tensor.name, tensor.datatype, tuple(tensor.shape), data))
    return found
