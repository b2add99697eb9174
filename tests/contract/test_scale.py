"""The size that the network is to see is asked for, and told, over every transport alike."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import numpy as np
import pytest

from cli.main import main
from fcn_client import FcnClient
from fcn_client.errors import ServerError
from fcn_client.stubs import segmentation_pb2 as pb
from service.api.stubs import inference_pb2 as oip
from service.api.stubs import inference_pb2_grpc as oip_grpc
from tests.contract.oip import Request, elements, tensors
from tests.drawing import png, read_png, street
from tests.serving import Server
from tests.tiny_models import write_model

IMAGE = png(street(96, 128))


def test_one_answer_over_every_transport(oip_server: Server) -> None:
    rest = oip_server.rest.post("/segment?version=1&scale=64", content=IMAGE)
    assert rest.status_code == 200, rest.text
    assert rest.headers["x-network-size"] == "48x64"
    whole = oip_server.rest.post("/segment?version=1&scale=none", content=IMAGE)
    assert whole.headers["x-network-size"] == "96x128"
    assert whole.content == oip_server.rest.post("/segment?version=1", content=IMAGE).content, (
        "a model without a range is asked as before"
    )
    labels = read_png(rest.content)
    assert labels.shape == (96, 128) and (labels != read_png(whole.content)).any()

    request = pb.SegmentRequest(image=IMAGE, version="1", scale="64")
    call = oip_server.stub.Segment(request, timeout=30)
    assert call.body == rest.content
    assert (call.network_height_px, call.network_width_px) == (48, 64)
    for url in (oip_server.url, f"grpc://{oip_server.target}"):
        with FcnClient(url) as client:
            result = client.segment(IMAGE, version="1", scale=64)
            assert (result.network_size, result.body) == ((48, 64), rest.content)
            assert client.segment(IMAGE, version="1", scale="none").body == whole.content

    asked = Request("BYTES", (1,), elements([IMAGE]), parameters={"scale": 64})
    reply = asked.post(oip_server.rest)
    np.testing.assert_array_equal(tensors(reply)["label_map"][0], labels)
    head = reply.content[: int(reply.headers["inference-header-content-length"])]
    assert json.loads(head)["parameters"] == {"network_size": "48x64"}
    message = asked.message()
    message.parameters["scale"].CopyFrom(oip.InferParameter(string_param="64"))
    answer = oip_grpc.GRPCInferenceServiceStub(oip_server.channel).ModelInfer(message, timeout=30)
    assert answer.raw_output_contents[0] == labels.tobytes()
    assert answer.parameters["network_size"].string_param == "48x64"


@pytest.mark.parametrize("scale", ["0", "-1", "65536", "1e3", "AUTO", "9.5", "²"])
def test_a_wrong_scale_is_told_the_right_ones(oip_server: Server, scale: str) -> None:
    words = "use auto, none, or how many pixels the longer side may have"
    rest = oip_server.rest.post("/segment", params={"scale": scale}, content=IMAGE)
    assert rest.status_code == 400 and words in rest.json()["detail"]
    with pytest.raises(grpc.RpcError, match=words):
        oip_server.stub.Segment(pb.SegmentRequest(image=IMAGE, scale=scale), timeout=30)
    with FcnClient(oip_server.url) as client, pytest.raises(ServerError, match=words):
        client.segment(IMAGE, scale=scale)  # type: ignore[call-overload]
    asked = Request("BYTES", (1,), elements([IMAGE]), parameters={"scale": scale})
    reply = asked.post(oip_server.rest)
    assert reply.status_code == 400 and words in reply.json()["error"]


def test_predict_asks_for_it_too(oip_server: Server, tmp_path: Path) -> None:
    """Labels by a server or in the process itself; answers of two sizes are not mixed."""
    (tmp_path / "a.png").write_bytes(IMAGE)
    repository = tmp_path / "models"
    write_model(repository)
    wanted = {
        scale: oip_server.rest.post(f"/segment?version=1&scale={scale}", content=IMAGE).content
        for scale in ("64", "auto")
    }
    for where in (["--local", str(repository)], ["--url", oip_server.url, "--model-version", "1"]):
        out = tmp_path / where[0].strip("-")
        words = ["predict", str(tmp_path / "a.png"), "--out", str(out), "--write", "label_map"]
        for scale, body in wanted.items():
            assert main([*words, *where, "--scale", scale]) == (0 if scale == "64" else 1)
            assert main([*words, *where, "--scale", scale, "--afresh"]) == 0
            (file,) = (out / "label_maps").iterdir()
            np.testing.assert_array_equal(read_png(file.read_bytes()), read_png(body))
    with pytest.raises(SystemExit):
        main([*words, *where, "--scale", "large"])
