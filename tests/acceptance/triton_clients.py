"""tritonclient, over HTTP and gRPC, blocking and asyncio, against a running server.

`python triton_clients.py URL TARGET FOLDER ADMIN_KEY`, in the environment of requirements.txt.
FOLDER has images.npy (uint8 [N,H,W,3]), label_maps.npy (uint8 [N,H,W], the right answers of model
`tiny` version 1) and 0.png, 1.png, ... (the same images). Prints a line for each way that got the
right answers; a traceback and exit code 1 otherwise.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

MODEL, VERSION = "tiny", "1"
SCORES = ("logits", "probabilities")
URL, TARGET, FOLDER, KEY = sys.argv[1:]
ADDRESS = URL.removeprefix("http://")
IMAGES = np.load(Path(FOLDER) / "images.npy")
LABEL_MAPS = np.load(Path(FOLDER) / "label_maps.npy")
FILES = np.array(
    [(Path(FOLDER) / f"{n}.png").read_bytes() for n in range(len(IMAGES))], dtype=np.object_
)
ADMIN = {"authorization": f"Bearer {KEY}"}


def check(label_maps: Any, what: str) -> None:
    np.testing.assert_array_equal(np.asarray(label_maps), LABEL_MAPS, what)
    if np.asarray(label_maps).dtype != np.uint8:
        raise TypeError(f"{what}: {np.asarray(label_maps).dtype}")
    print(what, "ok")


def check_scores(reply: Any, what: str) -> None:
    """The largest is at the label."""
    for name in SCORES:
        scores = reply.as_numpy(name)
        if scores.dtype != np.float32:
            raise TypeError(f"{what} {name}: {scores.dtype}")
        np.testing.assert_array_equal(scores.argmax(axis=1), LABEL_MAPS, f"{what} {name}")
        if name == "probabilities":
            np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
    print(what, *SCORES, "ok")


def triton_input(kind: Any, array: Any, datatype: str, **options: Any) -> Any:
    tensor = kind.InferInput("image", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, **options)
    return tensor


def triton_http() -> None:
    kind = tritonclient.http
    with kind.InferenceServerClient(ADDRESS, concurrency=4) as client:
        if not (client.is_server_live() and client.is_server_ready()):
            raise RuntimeError("not ready")
        if not client.is_model_ready(MODEL) or client.is_model_ready("nope"):
            raise RuntimeError("readiness of models")
        if "binary_tensor_data" not in client.get_server_metadata()["extensions"]:
            raise RuntimeError("binary_tensor_data is not listed")
        about = client.get_model_metadata(MODEL, VERSION)
        if about["inputs"][0]["shape"] != [-1, -1, -1, 3]:
            raise RuntimeError(about)
        if client.get_model_config(MODEL)["input"][0]["dims"] != [-1, -1, 3]:
            raise RuntimeError("the configuration's dims")
        for binary_in in (True, False):
            for binary_out in (True, False):
                inputs = [triton_input(kind, IMAGES, "UINT8", binary_data=binary_in)]
                outputs = [kind.InferRequestedOutput("label_map", binary_data=binary_out)]
                reply = client.infer(MODEL, inputs, VERSION, outputs, request_id="x1")
                if reply.get_response()["id"] != "x1":
                    raise RuntimeError("the id")
                what = f"tritonclient.http binary_in={binary_in} binary_out={binary_out}"
                check(reply.as_numpy("label_map"), what)
        inputs = [triton_input(kind, FILES, "BYTES")]
        check(client.infer(MODEL, inputs, VERSION).as_numpy("label_map"), "tritonclient.http BYTES")
        outputs = [kind.InferRequestedOutput("overlay")]
        overlays = client.infer(MODEL, inputs, VERSION, outputs).as_numpy("overlay")
        if not all(overlay.startswith(b"\x89PNG") for overlay in overlays):
            raise RuntimeError("an overlay is no PNG")
        for binary in (True, False):
            outputs = [kind.InferRequestedOutput(name, binary_data=binary) for name in SCORES]
            reply = client.infer(MODEL, inputs, VERSION, outputs)
            check_scores(reply, f"tritonclient.http binary_out={binary}")
        handle = client.async_infer(MODEL, inputs, VERSION)
        check(handle.get_result().as_numpy("label_map"), "tritonclient.http async_infer")
        stats = client.get_inference_statistics(MODEL, VERSION)["model_stats"][0]
        if stats["inference_stats"]["success"]["count"] < 7 or stats["inference_count"] < 14:
            raise RuntimeError(stats)
        repository(client, lambda found: [(m["name"], m["version"], m["state"]) for m in found])
        print("tritonclient.http repository ok")


def triton_grpc() -> None:
    kind = tritonclient.grpc
    with kind.InferenceServerClient(TARGET) as client:
        if not (client.is_server_live() and client.is_server_ready()):
            raise RuntimeError("not ready")
        if not client.is_model_ready(MODEL):
            raise RuntimeError("readiness of models")
        about = client.get_model_metadata(MODEL, VERSION)
        if list(about.inputs[0].shape) != [-1, -1, -1, 3]:
            raise RuntimeError(about)
        if list(client.get_model_config(MODEL).config.input[0].dims) != [-1, -1, 3]:
            raise RuntimeError("the configuration's dims")
        inputs = [triton_input(kind, IMAGES, "UINT8")]
        outputs = [kind.InferRequestedOutput("label_map"), kind.InferRequestedOutput("overlay")]
        reply = client.infer(MODEL, inputs, VERSION, outputs, request_id="x2")
        if reply.get_response().id != "x2" or not reply.as_numpy("overlay")[0].startswith(b"\x89"):
            raise RuntimeError("the id or the overlay")
        check(reply.as_numpy("label_map"), "tritonclient.grpc")
        files = [triton_input(kind, FILES, "BYTES")]
        check(client.infer(MODEL, files, VERSION).as_numpy("label_map"), "tritonclient.grpc BYTES")
        outputs = [kind.InferRequestedOutput(name) for name in SCORES]
        check_scores(client.infer(MODEL, files, VERSION, outputs), "tritonclient.grpc")
        answers: list[Any] = []
        client.start_stream(lambda result, error: answers.append(error or result))
        client.async_stream_infer(MODEL, inputs, VERSION, request_id="s1")
        client.stop_stream()
        check(answers[0].as_numpy("label_map"), "tritonclient.grpc stream")
        repository(client, lambda found: [(m.name, m.version, m.state) for m in found.models])
        print("tritonclient.grpc repository ok")


def repository(client: Any, rows: Callable[[Any], list[tuple[str, str, str]]]) -> None:
    """Unloads and loads `other`, as its operator and as somebody else."""
    for headers in ({}, {"authorization": "Bearer wrong"}):
        try:
            client.unload_model("other", headers=headers)
        except InferenceServerException as error:
            if "admin key" not in str(error):
                raise
        else:
            raise RuntimeError("unloaded without the key")
    client.unload_model("other", headers=ADMIN)
    if ("other", "1", "READY") in rows(client.get_model_repository_index(headers=ADMIN)):
        raise RuntimeError("it is still listed as ready")
    client.load_model("other", headers=ADMIN)
    if ("other", "1", "READY") not in rows(client.get_model_repository_index(headers=ADMIN)):
        raise RuntimeError("it is not ready again")


async def triton_aio() -> None:
    kind: Any
    for kind, address in ((tritonclient.http, ADDRESS), (tritonclient.grpc, TARGET)):
        async with kind.aio.InferenceServerClient(address) as client:
            inputs = [triton_input(kind, IMAGES, "UINT8")]
            replies = await asyncio.gather(
                *(client.infer(MODEL, inputs, VERSION) for _ in range(2))
            )
            for reply in replies:
                check(reply.as_numpy("label_map"), f"{kind.__name__}.aio")


triton_http()
triton_grpc()
asyncio.run(triton_aio())
