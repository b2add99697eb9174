"""The same image gets the same answer, to the byte, whichever way it is sent."""

from __future__ import annotations

import io
import json

import grpc
import numpy as np
import pytest

from fcn_client.stubs import segmentation_pb2 as pb
from tests.drawing import encode, jpeg, png, read_png, street
from tests.serving import Server
from tests.tiny_models import CLASSES, expected_label_map

RGB = street(40, 56)
OUTPUTS = {
    "label_map": pb.OUTPUT_LABEL_MAP,
    "overlay": pb.OUTPUT_OVERLAY,
    "color": pb.OUTPUT_COLOR,
    "json": pb.OUTPUT_JSON,
    "rle": pb.OUTPUT_RLE,
    "polygons": pb.OUTPUT_POLYGONS,
    "probabilities": pb.OUTPUT_PROBABILITIES,
    "confidence": pb.OUTPUT_CONFIDENCE,
}
MORE = {"outlines": "true", "dtype": "float16"}
NEED_LOGITS = ("probabilities", "confidence")
FORMATS = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/webp": "WEBP",
    "image/bmp": "BMP",
    "image/tiff": "TIFF",
}


@pytest.mark.parametrize("media_type", FORMATS)
def test_three_ways_one_answer(server: Server, media_type: str) -> None:
    image = encode(RGB, FORMATS[media_type])
    raw = server.rest.post("/segment", content=image, headers={"Content-Type": media_type})
    form = server.rest.post("/segment", files={"image": ("an image", image, media_type)})
    call = server.stub.Segment(pb.SegmentRequest(image=image), timeout=30)
    assert raw.status_code == form.status_code == 200
    assert raw.content == form.content == call.body
    assert read_png(call.body).shape == RGB.shape[:2]
    assert call.media_type == raw.headers["content-type"] == form.headers["content-type"]
    assert (call.height_px, call.width_px) == RGB.shape[:2]
    assert (call.model, call.version) == ("tiny", "2")
    assert (raw.headers["x-model"], raw.headers["x-model-version"]) == ("tiny", "2")


@pytest.mark.parametrize("output", OUTPUTS)
def test_outputs_over_both_transports(server: Server, output: str) -> None:
    image = jpeg(RGB)
    raw = server.rest.post(
        "/segment",
        params={"version": "1", "output": output, "alpha": "0.25", "classes": "red,2", **MORE},
        content=image,
        headers={"Content-Type": "image/jpeg"},
    )
    call = server.stub.Segment(
        pb.SegmentRequest(
            image=image,
            version="1",
            output=OUTPUTS[output],
            alpha=0.25,
            classes=["red", "2"],
            outlines=True,
            dtype=pb.DTYPE_FLOAT16,
        ),
        timeout=30,
    )
    assert raw.status_code == 200
    assert raw.headers["content-type"] == call.media_type
    if output == "json":
        one, two = json.loads(raw.content), json.loads(call.body)
        del one["timings_ms"], two["timings_ms"]
        assert one == two
        assert (one["model"], one["version"]) == ("tiny", "1")
        assert (one["height"], one["width"]) == RGB.shape[:2]
        assert {c["name"] for c in one["classes"]} <= {"red", "blue"}
    else:
        assert raw.content == call.body
    if output == "label_map":
        kept = expected_label_map(read_png(png(_decoded(image))))
        np.testing.assert_array_equal(read_png(call.body), np.where(kept == 1, 255, kept))
    if output == "probabilities":
        assert call.media_type == "application/x-npy"
        scores = np.load(io.BytesIO(call.body))
        assert (scores.dtype, scores.shape) == (np.float16, (2, *RGB.shape[:2]))
    if output == "polygons":
        assert call.media_type == "application/geo+json"


def test_the_largest_probability_is_the_labels(server: Server) -> None:
    headers = {"Content-Type": "image/png", "Accept": "application/x-npy"}
    reply = server.rest.post("/segment?version=1", content=png(RGB), headers=headers)
    assert reply.status_code == 200, reply.text
    scores = np.load(io.BytesIO(reply.content))
    assert (scores.dtype, scores.shape) == (np.uint8, (3, *RGB.shape[:2]))
    np.testing.assert_array_equal(scores.argmax(axis=0), expected_label_map(RGB))


@pytest.mark.parametrize("output", NEED_LOGITS)
def test_without_logits_there_are_no_probabilities(server: Server, output: str) -> None:
    reply = server.rest.post(f"/segment?output={output}", content=png(RGB))
    assert reply.status_code == 400
    assert reply.json()["type"] == "urn:fcn:problem:invalid-parameter"
    assert "model tiny version 2 was exported without" in reply.json()["detail"]
    assert "--logits" in reply.json()["detail"]
    with pytest.raises(grpc.RpcError, match="--logits") as caught:
        server.stub.Segment(pb.SegmentRequest(image=png(RGB), output=OUTPUTS[output]), timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_unknown_dtype_is_refused_over_grpc(server: Server) -> None:
    with pytest.raises(grpc.RpcError, match="there is no dtype 9") as caught:
        server.stub.Segment(pb.SegmentRequest(image=png(RGB), dtype=9), timeout=30)  # type: ignore[arg-type]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def _decoded(image: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return read_png(image)  # Pillow tells a JPEG by its bytes


def test_classes_may_repeat(server: Server) -> None:
    image = png(RGB)
    replies = [
        server.rest.post(f"/segment?{query}", content=image, headers={"Content-Type": ""})
        for query in ("classes=red,blue", "classes=red&classes=blue", "classes=0,%202&classes=")
    ]
    assert [reply.status_code for reply in replies] == [200, 200, 200]
    assert len({reply.content for reply in replies}) == 1
    assert 255 in read_png(replies[0].content)


def test_model_and_version_are_chosen(server: Server) -> None:
    image = png(RGB)
    for params, label in (({"model": "other"}, 2), ({}, 1), ({"model": "tiny"}, 1)):
        reply = server.rest.post(
            "/segment", params=params, content=image, headers={"Content-Type": "image/png"}
        )
        assert np.unique(read_png(reply.content)).tolist() == [label]
        assert CLASSES[label].id == label


def test_output_wins_over_accept(server: Server) -> None:
    reply = server.rest.post(
        "/segment?output=json",
        content=png(RGB),
        headers={"Content-Type": "image/png", "Accept": "image/png"},
    )
    assert reply.headers["content-type"] == "application/json"


def test_server_timing_names_the_stages(server: Server) -> None:
    reply = server.rest.post("/segment", content=png(RGB), headers={"Content-Type": "image/png"})
    entries = [entry.split(";dur=") for entry in reply.headers["server-timing"].split(", ")]
    assert [name for name, _ in entries] == ["decode", "queue", "infer", "render"]
    assert all(float(duration) >= 0 for _, duration in entries)
    call = server.stub.Segment(pb.SegmentRequest(image=png(RGB)), timeout=30)
    assert call.timings.decode_s > 0 and call.timings.infer_s > 0 and call.timings.render_s > 0
    assert call.batch_size == 1


def test_request_id_is_echoed_or_made(server: Server) -> None:
    image = png(RGB)
    headers = {"Content-Type": "image/png", "X-Request-ID": "job-7:a.b_c"}
    assert server.rest.post("/segment", content=image, headers=headers).headers["x-request-id"] == (
        "job-7:a.b_c"
    )
    made = [server.rest.get("/livez").headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1] and all(len(each) == 32 for each in made)
    for bad in ("has space", "x" * 129, "semi;colon", 'quo"te'):
        reply = server.rest.get("/livez", headers={"X-Request-ID": bad})
        assert reply.status_code == 200
        assert reply.headers["x-request-id"] != bad

    call = server.stub.Segment.with_call
    _, done = call(
        pb.SegmentRequest(image=image), metadata=(("x-request-id", "job-8"),), timeout=30
    )
    assert dict(done.trailing_metadata())["x-request-id"] == "job-8"
    _, done = call(
        pb.SegmentRequest(image=image), metadata=(("x-request-id", "job 8"),), timeout=30
    )
    assert len(dict(done.trailing_metadata())["x-request-id"]) == 32
