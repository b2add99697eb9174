"""gRPC of the Open Inference Protocol: /segment's answers, and wrong requests are told why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from service.api.stubs import inference_pb2 as pb
from service.api.stubs import inference_pb2_grpc as pb_grpc
from tests.contract.conftest import ADMIN_KEY, MAX_PIXELS
from tests.contract.oip import CASES, FILES, IMAGES, Request
from tests.drawing import UInt8Array, png, read_png, street
from tests.serving import Server

ADMIN = (("authorization", f"Bearer {ADMIN_KEY}"),)


@pytest.fixture(scope="module")
def stub(oip_server: Server) -> pb_grpc.GRPCInferenceServiceStub:
    return pb_grpc.GRPCInferenceServiceStub(oip_server.channel)


@pytest.fixture(scope="module")
def label_maps(oip_server: Server) -> UInt8Array:
    """Asks /segment for each of IMAGES."""
    replies = [oip_server.rest.post("/segment?version=1", content=png(image)) for image in IMAGES]
    return np.stack([read_png(reply.content) for reply in replies])


@pytest.fixture(autouse=True)
def _keeps_serving(stub: pb_grpc.GRPCInferenceServiceStub) -> Iterator[None]:
    yield
    assert stub.ModelInfer(Request().message(), timeout=30).outputs


def assert_status(error: grpc.RpcError, code: str, *words: str) -> None:
    assert isinstance(error, grpc.Call)
    assert error.code().name == code, error.details()
    assert dict(error.trailing_metadata() or ())["x-request-id"]
    for word in words:
        assert word in (error.details() or "")


def label_map(response: pb.ModelInferResponse) -> UInt8Array:
    (output,) = response.outputs
    assert (output.name, output.datatype) == ("label_map", "UINT8")
    return np.frombuffer(response.raw_output_contents[0], np.uint8).reshape(output.shape)


@pytest.mark.parametrize("datatype", ["UINT8", "BYTES"])
@pytest.mark.parametrize("raw", [True, False])
def test_infer(
    stub: pb_grpc.GRPCInferenceServiceStub, label_maps: UInt8Array, datatype: str, raw: bool
) -> None:
    request = Request() if datatype == "UINT8" else Request("BYTES", (2,), FILES)
    message = request.message()
    if not raw:
        del message.raw_input_contents[:]
        if datatype == "UINT8":
            message.inputs[0].contents.uint_contents.extend(IMAGES.ravel().tolist())
        else:
            message.inputs[0].contents.bytes_contents.extend(png(p) for p in IMAGES)
    response = stub.ModelInfer(message, timeout=30)
    assert (response.id, response.model_name, response.model_version) == ("an id", "tiny", "1")
    np.testing.assert_array_equal(label_map(response), label_maps)


def test_about_server_and_model(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    assert "binary_tensor_data" in stub.ServerMetadata(pb.ServerMetadataRequest()).extensions
    assert stub.ModelReady(pb.ModelReadyRequest(name="first")).ready
    about = stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny", version="2"))
    assert list(about.versions) == ["1", "2"]
    assert [(t.name, t.datatype, list(t.shape)) for t in about.inputs] == [
        ("image", "UINT8", [-1, -1, -1, 3])
    ]
    config = stub.ModelConfig(pb.ModelConfigRequest(name="tiny")).config
    assert (config.max_batch_size, list(config.input[0].dims)) == (64, [-1, -1, 3])
    assert config.output[0].data_type == pb.TYPE_UINT8
    (stats,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name="tiny", version="1")).model_stats
    assert stats.inference_stats.success.count > 0
    for call, request in (
        (stub.ModelReady, pb.ModelReadyRequest(name="nope")),
        (stub.ModelMetadata, pb.ModelMetadataRequest(name="nope")),
        (stub.ModelConfig, pb.ModelConfigRequest(name="tiny", version="9")),
        (stub.ModelStatistics, pb.ModelStatisticsRequest(name="tiny", version="9")),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(request)
        assert_status(caught.value, "NOT_FOUND")


@pytest.mark.parametrize("name", CASES)
def test_wrong_tensor(stub: pb_grpc.GRPCInferenceServiceStub, name: str) -> None:
    case = CASES[name]
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(case.request.message(), timeout=30)
    assert_status(caught.value, case.code, *case.words)


def test_wrong_message(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    twice, none, both, shared = (Request().message() for _ in range(4))
    twice.raw_input_contents.append(b"x")
    del none.raw_input_contents[:]
    both.inputs[0].contents.uint_contents.append(1)
    shared.inputs[0].parameters["shared_memory_region"].string_param = "a"
    for message, word in (
        (twice, "2 entries for 1 inputs"),
        (none, "whole numbers"),
        (both, "send them once"),
        (shared, "shared memory"),
        (pb.ModelInferRequest(model_name="tiny"), "none"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(message, timeout=30)
        assert_status(caught.value, "INVALID_ARGUMENT", word)


def test_no_message_of_the_protocol(oip_server: Server) -> None:
    call = oip_server.channel.stream_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=lambda message: message,
        response_deserializer=pb.ModelInferResponse.FromString,
    )
    for messages, word in (([], "no message"), ([b"\xff\xff"], "no ModelInferRequest")):
        with pytest.raises(grpc.RpcError) as caught:
            call(iter(messages), timeout=30)
        assert_status(caught.value, "INVALID_ARGUMENT", word)


def test_no_message_of_the_protocol_in_a_stream(oip_server: Server) -> None:
    call = oip_server.channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=lambda message: message,
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    answers: Any = call(iter([Request().message().SerializeToString(), b"\xff\xff"]), timeout=30)
    assert next(answers).infer_response.outputs
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_message_sizes(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    image = street(100, MAX_PIXELS // 100)[None]
    largest = Request(shape=image.shape, data=image.tobytes())
    response = stub.ModelInfer(largest.message(), timeout=30)
    np.testing.assert_array_equal(label_map(response), image.argmax(axis=3))
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(Request(data=bytes(3 * MAX_PIXELS + 3 * 65536)).message(), timeout=30)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_stream(stub: pb_grpc.GRPCInferenceServiceStub, label_maps: UInt8Array) -> None:
    messages = [Request().message(), CASES["rank"].request.message(), Request().message()]
    for number, message in enumerate(messages):
        message.id = str(number)
    good, bad, good_again = stub.ModelStreamInfer(iter(messages), timeout=30)
    for number, answer in ((0, good), (2, good_again)):
        assert (answer.infer_response.id, answer.error_message) == (str(number), "")
        np.testing.assert_array_equal(label_map(answer.infer_response), label_maps)
    assert bad.infer_response.id == "1"
    assert "[30,50,3]" in bad.error_message


def test_repository(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    for metadata in ((), (("authorization", "Bearer x"),)):
        for call, request in (
            (stub.RepositoryIndex, pb.RepositoryIndexRequest()),
            (stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="other")),
            (stub.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name="other")),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(request, metadata=metadata)
            assert_status(caught.value, "UNAUTHENTICATED", "admin key")
    stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="other"), metadata=ADMIN)
    ready = stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True), metadata=ADMIN).models
    assert [(m.name, m.version, m.state) for m in ready] == [
        ("tiny", "1", "READY"),
        ("tiny", "2", "READY"),
    ]
    stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="other"), metadata=ADMIN)
    listed = stub.RepositoryIndex(pb.RepositoryIndexRequest(), metadata=ADMIN).models
    assert ("other", "READY") in [(m.name, m.state) for m in listed]
