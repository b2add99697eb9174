"""Logits and probabilities of the Open Inference Protocol, in every form they are sent in."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from service.api.stubs import inference_pb2 as pb
from service.api.stubs import inference_pb2_grpc as pb_grpc
from tests.contract.oip import INFER, Request, tensors
from tests.drawing import UInt8Array, png, read_png, street
from tests.serving import Server
from tests.tiny_models import expected_logits

Arrays = dict[str, npt.NDArray[Any]]
Ask = Callable[[Server, UInt8Array, tuple[str, ...]], Arrays]
DTYPES = {"UINT8": np.uint8, "FP32": np.float32}
OUTPUTS = ("probabilities", "label_map", "logits")


def asked(images: UInt8Array, outputs: tuple[str, ...]) -> Request:
    return Request(shape=images.shape, data=images.tobytes(), outputs=outputs)


def as_bytes(server: Server, images: UInt8Array, outputs: tuple[str, ...]) -> Arrays:
    found = tensors(asked(images, outputs).post(server.rest))
    return {name: array for name, array in found.items() if not isinstance(array, bytes)}


def as_json(server: Server, images: UInt8Array, outputs: tuple[str, ...]) -> Arrays:
    files = [base64.b64encode(png(image)).decode() for image in images]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(files)], "data": files}
    document = {
        "inputs": [tensor],
        "outputs": [{"name": name} for name in outputs],
    }
    reply = server.rest.post(INFER, json=document)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/json"
    return {
        output["name"]: np.array(output["data"], DTYPES[output["datatype"]]).reshape(
            output["shape"]
        )
        for output in reply.json()["outputs"]
    }


def over_grpc(server: Server, message: pb.ModelInferRequest) -> pb.ModelInferResponse:
    response: pb.ModelInferResponse = pb_grpc.GRPCInferenceServiceStub(server.channel).ModelInfer(
        message, timeout=30
    )
    return response


def raw(server: Server, images: UInt8Array, outputs: tuple[str, ...]) -> Arrays:
    response = over_grpc(server, asked(images, outputs).message())
    assert not any(output.HasField("contents") for output in response.outputs)
    return {
        output.name: np.frombuffer(data, DTYPES[output.datatype]).reshape(output.shape)
        for output, data in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def typed(server: Server, images: UInt8Array, outputs: tuple[str, ...]) -> Arrays:
    message = asked(images, outputs).message()
    message.parameters["binary_data_output"].bool_param = False
    response = over_grpc(server, message)
    assert not response.raw_output_contents
    found: Arrays = {}
    for output in response.outputs:
        contents = output.contents
        data = contents.fp32_contents if output.datatype == "FP32" else contents.uint_contents
        found[output.name] = np.array(data, DTYPES[output.datatype]).reshape(output.shape)
    return found


@pytest.mark.parametrize("ask", [as_bytes, as_json, raw, typed])
@pytest.mark.parametrize("size", [(1, 1), (30, 50), (101, 7), (150, 160)])
def test_the_largest_score_is_at_the_label(
    oip_server: Server, ask: Ask, size: tuple[int, int]
) -> None:
    """150 x 160 pixels are more numbers than are written out at a time."""
    images = street(*size, seed=3)[None]
    found = ask(oip_server, images, OUTPUTS)
    assert tuple(found) == OUTPUTS
    reply = oip_server.rest.post("/segment?version=1", content=png(images[0]))
    np.testing.assert_array_equal(found["label_map"][0], read_png(reply.content))
    wanted = expected_logits(images)
    np.testing.assert_array_equal(found["logits"], wanted)
    powers = np.exp(wanted - wanted.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        found["probabilities"], powers / powers.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-30
    )
    for name in ("logits", "probabilities"):
        assert (found[name].dtype, found[name].shape) == (
            np.dtype(np.float32),
            (1, 3, *size),
        )
        np.testing.assert_array_equal(found[name].argmax(axis=1), found["label_map"])


@pytest.mark.parametrize("ask", [as_bytes, typed])
def test_many_images_each_have_their_own(oip_server: Server, ask: Ask) -> None:
    images = np.stack([street(12, 16, seed=n) for n in range(20)])
    found = ask(oip_server, images, ("logits",))
    np.testing.assert_array_equal(found["logits"], expected_logits(images))


def test_beside_an_overlay(oip_server: Server) -> None:
    image = street(30, 50)
    outputs = ("overlay", "probabilities")
    message = asked(image[None], outputs).message()
    response = over_grpc(oip_server, message)
    assert [(o.name, o.datatype, list(o.shape)) for o in response.outputs] == [
        ("overlay", "BYTES", [1]),
        ("probabilities", "FP32", [1, 3, 30, 50]),
    ]
    overlay = oip_server.rest.post("/segment?version=1&output=overlay", content=png(image))
    assert response.raw_output_contents[0][4:] == overlay.content
    message.parameters["binary_data_output"].bool_param = False
    response = over_grpc(oip_server, message)
    assert list(response.outputs[0].contents.bytes_contents) == [overlay.content]


def test_no_others_than_those_asked_for(oip_server: Server) -> None:
    image = street(30, 50)[None]
    assert list(as_bytes(oip_server, image, ())) == ["label_map"]
    assert list(as_bytes(oip_server, image, ("logits",))) == ["logits"]


def test_they_are_listed_of_versions_that_have_them(oip_server: Server) -> None:
    def names(path: str) -> list[tuple[str, str, list[int]]]:
        document = oip_server.rest.get(f"/v2/models/tiny/versions/{path}").json()
        if path.endswith("config"):
            return [(o["name"], o["data_type"], o["dims"]) for o in document["output"]]
        return [(o["name"], o["datatype"], o["shape"]) for o in document["outputs"]]

    listed = [
        ("label_map", "UINT8", [-1, -1, -1]),
        ("logits", "FP32", [-1, 3, -1, -1]),
        ("probabilities", "FP32", [-1, 3, -1, -1]),
    ]
    configured = [(name, f"TYPE_{kind}", shape[1:]) for name, kind, shape in listed]
    assert (names("1"), names("2")) == (listed, listed[:1])
    assert (names("1/config"), names("2/config")) == (configured, configured[:1])
    stub = pb_grpc.GRPCInferenceServiceStub(oip_server.channel)
    for version, wanted in (("1", listed), ("2", listed[:1])):
        about = stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny", version=version))
        assert [(o.name, o.datatype, list(o.shape)) for o in about.outputs] == wanted
        config = stub.ModelConfig(pb.ModelConfigRequest(name="tiny", version=version)).config
        assert [
            (o.name, pb.DataType.Name(o.data_type), list(o.dims)) for o in config.output
        ] == configured[: len(wanted)]


def test_numbers_and_text_in_json_are_as_before(oip_server: Server) -> None:
    """An id that is half a surrogate pair comes back."""
    document = {
        "id": "\ud800 \u00e9",
        "inputs": [
            {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [9, 0, 0]}
        ],
    }
    reply = oip_server.rest.post(INFER, content=json.dumps(document))
    assert reply.json()["id"] == document["id"]
    assert reply.json()["outputs"] == [
        {"name": "label_map", "datatype": "UINT8", "shape": [1, 1, 1], "data": [0]}
    ]
