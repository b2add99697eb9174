"""REST of the Open Inference Protocol: /segment's answers, and wrong requests are told why."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.contract.conftest import ADMIN_KEY, MAX_IMAGE_BYTES, MAX_PIXELS
from tests.contract.oip import CASES, FILES, IMAGES, INFER, Request, elements, tensors
from tests.drawing import UInt8Array, png, read_png, street
from tests.serving import Server
from tests.waiting import until

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


@pytest.fixture(scope="module")
def label_maps(oip_server: Server) -> UInt8Array:
    """Asks /segment for each of IMAGES."""
    return np.stack([read_png(segmented(oip_server, image)) for image in IMAGES])


def segmented(server: Server, image: UInt8Array, query: str = "") -> bytes:
    reply = server.rest.post(
        f"/segment?version=1{query}", content=png(image), headers={"Content-Type": "image/png"}
    )
    assert reply.status_code == 200
    return reply.content


@pytest.fixture(autouse=True)
def _keeps_serving(oip_server: Server) -> Iterator[None]:
    yield
    assert Request().post(oip_server.rest).status_code == 200


def assert_error(reply: httpx.Response, status: int, *words: str) -> None:
    assert reply.status_code == status, reply.text
    assert list(reply.json()) == ["error"]
    assert reply.headers["x-request-id"]
    assert len(reply.content) < 2000
    for word in words:
        assert word in reply.json()["error"]


def as_json(data: Any, datatype: str = "UINT8", shape: Any = IMAGES.shape) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "datatype": datatype, "shape": list(shape), "data": data}]}


def test_server_and_models(oip_server: Server) -> None:
    get = oip_server.rest.get
    server = get("/v2").json()
    assert server["name"] == "fcn-serve"
    assert "binary_tensor_data" in server["extensions"]
    assert get("/v2/health/live").json() == {"live": True}
    assert get("/v2/health/ready").json()["ready"] is True
    about = get("/v2/models/tiny").json()
    assert about["versions"] == ["1", "2"]
    assert about["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert about["outputs"] == [{"name": "label_map", "datatype": "UINT8", "shape": [-1, -1, -1]}]
    assert get("/v2/models/tiny/versions/2").json() == about
    first = get("/v2/models/first").json()
    assert first == get("/v2/models/first/versions/1").json()
    assert first["versions"] == about["versions"]
    assert get("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
    assert get("/v2/models/tiny/config").json()["max_batch_size"] == 64


@pytest.mark.parametrize("datatype", ["UINT8", "BYTES"])
def test_binary(oip_server: Server, label_maps: UInt8Array, datatype: str) -> None:
    request = Request() if datatype == "UINT8" else Request("BYTES", (2,), FILES)
    np.testing.assert_array_equal(tensors(request.post(oip_server.rest))["label_map"], label_maps)


@pytest.mark.parametrize("form", ["nested", "flat", "base64"])
def test_json(oip_server: Server, label_maps: UInt8Array, form: str) -> None:
    document = {
        "nested": as_json(IMAGES.tolist()),
        "flat": as_json(IMAGES.ravel().tolist()),
        "base64": as_json([base64.b64encode(png(p)).decode() for p in IMAGES], "BYTES", (2,)),
    }[form]
    reply = oip_server.rest.post(INFER, json={**document, "id": "7"})
    answer = reply.json()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "tiny", "1")
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"]) == ("label_map", "UINT8")
    np.testing.assert_array_equal(np.reshape(output["data"], output["shape"]), label_maps)
    assert "infer;dur=" in reply.headers["server-timing"]


def test_a_image_as_the_body(oip_server: Server, label_maps: UInt8Array) -> None:
    headers = {"Inference-Header-Content-Length": "0"}
    reply = oip_server.rest.post(INFER, content=png(IMAGES[0]), headers=headers)
    assert reply.json()["outputs"][0]["data"] == label_maps[0].ravel().tolist()


def test_overlay(oip_server: Server, label_maps: UInt8Array) -> None:
    wanted = segmented(oip_server, IMAGES[0], "&output=overlay&alpha=0.25")
    request = Request(
        shape=(1, 30, 50, 3),
        data=IMAGES[0].tobytes(),
        outputs=["overlay", "label_map"],
        parameters={"alpha": 0.25},
    )
    found = tensors(request.post(oip_server.rest))
    assert found["overlay"] == elements([wanted])
    np.testing.assert_array_equal(found["label_map"], label_maps[:1])
    document = as_json(IMAGES[:1].tolist(), shape=(1, 30, 50, 3))
    document["parameters"] = {"alpha": 0.25}
    document["outputs"] = [{"name": "overlay"}]
    (output,) = oip_server.rest.post(INFER, json=document).json()["outputs"]
    assert output["parameters"] == {"content_type": "base64"}
    assert base64.b64decode(output["data"][0]) == wanted


def test_overlays_of_two_sizes(oip_server: Server) -> None:
    sizes = [(24, 32), (30, 50)]
    files = elements([png(street(*size)) for size in sizes])
    request = Request("BYTES", (2,), files, outputs=["overlay"])
    overlays = tensors(request.post(oip_server.rest))["overlay"]
    assert overlays == elements(
        [segmented(oip_server, street(*s), "&output=overlay") for s in sizes]
    )


def test_more_images_than_the_queue_holds(oip_server: Server) -> None:
    images = np.stack([street(12, 16, seed=n) for n in range(30)])
    reply = Request(shape=images.shape, data=images.tobytes()).post(oip_server.rest)
    found = tensors(reply)["label_map"]
    np.testing.assert_array_equal(found, images.argmax(axis=3))


def test_as_large_as_allowed(oip_server: Server) -> None:
    image = street(100, MAX_PIXELS // 100)
    reply = Request(shape=(1, *image.shape), data=image.tobytes()).post(oip_server.rest)
    np.testing.assert_array_equal(tensors(reply)["label_map"], image[None].argmax(axis=3))


@pytest.mark.parametrize("name", CASES)
def test_wrong_tensor(oip_server: Server, name: str) -> None:
    case = CASES[name]
    assert_error(case.request.post(oip_server.rest), case.status, *case.words)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (IMAGES[:, :-1].tolist(), ("[2,29,50,3]", "[2,30,50,3]")),
        (IMAGES.ravel().tolist()[:-1], ("[8999]",)),
        ([[1, 2], [3]], ("neither flat nor nested",)),
        ([256] * 9000, ("0 to 255",)),
        ([-1] * 9000, ("0 to 255",)),
        ([10**30, *[0] * 8999], ("0 to 255",)),
        ([0.5] * 9000, ("whole numbers",)),
        ([True] * 9000, ("whole numbers",)),
        (["1"] * 9000, ("whole numbers",)),
        ([], ("whole numbers",)),
        ("text", ("array",)),
        (None, ("array",)),
    ],
)
def test_wrong_numbers(oip_server: Server, data: Any, words: tuple[str, ...]) -> None:
    assert_error(oip_server.rest.post(INFER, json=as_json(data)), 400, *words)


@pytest.mark.parametrize(
    ("document", "word"),
    [
        ([], "JSON object"),
        ({}, "inputs"),
        ({"inputs": []}, "none"),
        ({"inputs": [7]}, "JSON object"),
        ({"inputs": [{"name": "image"}]}, "datatype"),
        ({"inputs": [{"name": 7, "datatype": "UINT8", "shape": [1]}]}, "name"),
        ({"inputs": [{"name": "image", "datatype": "UINT8"}]}, "shape"),
        (as_json([1], shape=["1"]), "whole numbers"),
        (as_json([1], shape=[True, 1, 1, 3]), "whole numbers"),
        (as_json(["not base64"], "BYTES", [1]), "base64"),
        (as_json([7], "BYTES", [1]), "base64"),
        ({**as_json([1]), "id": 7}, "id"),
        ({**as_json([1]), "parameters": []}, "parameters"),
        ({**as_json([1]), "outputs": {}}, "outputs"),
        ({**as_json([1]), "parameters": {"binary_data_output": 1}}, "true or false"),
        ({**as_json([1]), "outputs": [{"name": []}]}, "output's name"),
        (
            {
                **as_json([1]),
                "outputs": [{"name": "label_map", "parameters": {"classification": 2}}],
            },
            "classification",
        ),
        (
            {
                **as_json([1]),
                "outputs": [{"name": "label_map", "parameters": {"shared_memory_region": "a"}}],
            },
            "shared memory",
        ),
    ],
)
def test_wrong_document(oip_server: Server, document: Any, word: str) -> None:
    assert_error(oip_server.rest.post(INFER, json=document), 400, word)


def test_null_is_as_if_left_out(oip_server: Server) -> None:
    plain = as_json(IMAGES.tolist())
    own = {"binary_data_size": None, "shared_memory_region": None}
    parameters = {"binary_data_output": None, "timeout": None, "priority": None}
    of_output = {"binary_data": None, "classification": None, "shared_memory_region": None}
    answers = [
        oip_server.rest.post(INFER, json=document)
        for document in (
            plain,
            {**plain, "id": None, "parameters": None, "outputs": None},
            {"inputs": [{**plain["inputs"][0], "parameters": None}], "parameters": parameters},
            {"inputs": [{**plain["inputs"][0], "parameters": own}], "outputs": []},
            {**plain, "outputs": [{"name": "label_map", "parameters": None}]},
            {**plain, "outputs": [{"name": "label_map", "parameters": of_output}]},
        )
    ]
    assert [answer.status_code for answer in answers] == [200] * 6
    assert len({answer.content for answer in answers}) == 1


@pytest.mark.parametrize(
    ("length", "size", "behind", "words"),
    [
        (10**9, 9000, 9000, ("1000000000", "the body has")),
        ("many", 9000, 9000, ("'many'",)),
        ("-1", 9000, 9000, ("'-1'",)),
        (5, 9000, 9000, ("not JSON",)),
        (None, 9000, 9000, ("not JSON", "Inference-Header-Content-Length")),
        ("right", 9001, 9000, ("is 9001, and 9000 bytes follow",)),
        ("right", 9000, 9007, ("7 bytes follow",)),
        ("right", -1, 9000, ("no length",)),
        ("right", "9000", 9000, ("no length",)),
    ],
)
def test_wrong_lengths(
    oip_server: Server, length: Any, size: Any, behind: int, words: tuple[str, ...]
) -> None:
    """length: the header, "right" for the JSON's own length. size: binary_data_size."""
    document = as_json(None)
    del document["inputs"][0]["data"]
    document["inputs"][0]["parameters"] = {"binary_data_size": size}
    head = json.dumps(document).encode()
    headers = {"Inference-Header-Content-Length": str(len(head) if length == "right" else length)}
    reply = oip_server.rest.post(
        INFER, content=head + bytes(behind), headers=headers if length is not None else {}
    )
    assert_error(reply, 400, *words)


def test_too_large(oip_server: Server) -> None:
    numbers = json.dumps(as_json([100] * 30_000)).encode()
    assert len(numbers) > MAX_IMAGE_BYTES
    assert_error(oip_server.rest.post(INFER, content=numbers), 413, "binary tensor data")
    body = bytes(3 * MAX_PIXELS + 2 * 65536)
    assert_error(oip_server.rest.post(INFER, content=body), 413, "larger than")
    chunks = (body[at : at + 65536] for at in range(0, len(body), 65536))
    assert_error(oip_server.rest.post(INFER, content=chunks), 413, "larger than")


def test_compressed_body(oip_server: Server) -> None:
    headers = {"Content-Encoding": "gzip"}
    reply = oip_server.rest.post(INFER, content=gzip.compress(b"{}"), headers=headers)
    assert_error(reply, 415, "'gzip'")


def test_addresses_that_do_not_exist(oip_server: Server) -> None:
    rest = oip_server.rest
    assert_error(rest.get("/v2/nope"), 404, "/docs")
    assert_error(rest.get(INFER), 405, "GET")
    for path in ("", "/ready", "/config", "/stats"):
        assert_error(rest.get(f"/v2/models/nope{path}"), 404, "'nope'")
        assert_error(rest.get(f"/v2/models/tiny/versions/9{path}"), 404, "'9'")


def test_statistics(oip_server: Server) -> None:
    def counts() -> tuple[int, int, int]:
        (stats,) = oip_server.rest.get("/v2/models/tiny/versions/1/stats").json()["model_stats"]
        inner = stats["inference_stats"]
        assert inner["compute_infer"]["count"] == inner["success"]["count"]
        return inner["success"]["count"], stats["inference_count"], inner["fail"]["count"]

    before = counts()
    Request().post(oip_server.rest)
    CASES["rank"].request.post(oip_server.rest)
    until(lambda: [b - a for a, b in zip(before, counts(), strict=True)] == [1, 2, 1])
    listed = oip_server.rest.get("/v2/models/stats").json()["model_stats"]
    assert [(s["name"], s["version"]) for s in listed] == [
        ("other", "1"),
        ("tiny", "1"),
        ("tiny", "2"),
    ]


def test_repository_without_a_key(server: Server) -> None:
    for path in ("index", "models/other/load", "models/other/unload"):
        reply = server.rest.post(f"/v2/repository/{path}", headers=ADMIN)
        assert_error(reply, 403, "no admin key", "FCN_ADMIN_KEY_FILE")


@pytest.mark.parametrize("offered", [None, "", "Bearer", "Bearer x", f"Basic {ADMIN_KEY}"])
def test_repository_with_a_wrong_key(oip_server: Server, offered: str | None) -> None:
    headers = {} if offered is None else {"Authorization": offered}
    for path in ("index", "models/other/load", "models/other/unload"):
        reply = oip_server.rest.post(f"/v2/repository/{path}", headers=headers)
        assert_error(reply, 401, "Authorization: Bearer")


@pytest.mark.parametrize(
    ("path", "body", "advice"),
    [
        ("models/tiny/load", {"parameters": 5}, "parameters is to be an object, or left out"),
        ("models/tiny/load", {"parameters": ["config"]}, "parameters is to be an object"),
        ("models/tiny/load", {"parameters": ""}, "parameters is to be an object"),
        ("models/tiny/unload", {"parameters": True}, "parameters is to be an object"),
        ("index", {"ready": "yes"}, "ready is to be true or false, or left out"),
        ("index", {"ready": 1}, "ready is to be true or false"),
        ("index", [{}], "no JSON object"),
        ("models/tiny/load", 5, "no JSON object"),
    ],
)
def test_repository_with_a_member_of_another_type(
    oip_server: Server, path: str, body: object, advice: str
) -> None:
    reply = oip_server.rest.post(f"/v2/repository/{path}", headers=ADMIN, json=body)
    assert_error(reply, 400, advice)


def test_repository(oip_server: Server) -> None:
    def post(path: str, **options: Any) -> httpx.Response:
        return oip_server.rest.post(f"/v2/repository/{path}", headers=ADMIN, **options)

    assert post("models/other/unload").json() == {}
    assert_error(Request(model="other").post(oip_server.rest), 404, "'other'")
    assert [m["name"] for m in post("index", json={"ready": True}).json()] == ["tiny", "tiny"]
    (other,) = (m for m in post("index").json() if m["name"] == "other")
    assert other["state"] == "UNAVAILABLE"
    assert post("models/other/load", json={}).json() == {}
    assert Request(model="other").post(oip_server.rest).status_code == 200
    assert_error(post("models/nope/load"), 404, "nope")
    assert_error(post("models/nope/unload"), 404, "nope")
    reply = post("models/other/load", json={"parameters": {"config": "{}"}})
    assert_error(reply, 400, "'config'", "model repository")
    assert_error(post("index", content=b"["), 400, "not JSON")
    assert_error(post("index", content=b"[]"), 400, "object")
    assert_error(post("index", content=bytes(70_000)), 413, "larger")
