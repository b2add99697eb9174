"""Requests of the Open Inference Protocol as the tests of both transports send them."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from service.api.stubs import inference_pb2 as pb
from tests.conftest import need
from tests.contract.conftest import MAX_PIXELS
from tests.drawing import huge_png_header, jpeg, png, street

IMAGES = np.stack([street(30, 50, seed=n) for n in range(2)])
INFER = "/v2/models/tiny/versions/1/infer"


def clients_python() -> Path:
    """The interpreter of the environment with other people's clients; skips without it."""
    python = Path(os.environ.get("OIP_CLIENTS_PYTHON", f"{sys.prefix}/clients/bin/python"))
    need(python.exists(), "the clients of tests/acceptance/requirements.txt: run `make clients`")
    return python


def elements(files: Sequence[bytes]) -> bytes:
    """BYTES elements, each after its length."""
    return b"".join(struct.pack("<I", len(file)) + file for file in files)


FILES = elements([png(image) for image in IMAGES])


@dataclass(frozen=True)
class Request:
    """One request with binary tensors; the default one is right."""

    datatype: str = "UINT8"
    shape: Sequence[int] = IMAGES.shape
    data: bytes = IMAGES.tobytes()
    name: str = "image"
    outputs: Sequence[str] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    model: str = "tiny"
    version: str = "1"

    def post(self, client: httpx.Client) -> httpx.Response:
        document: dict[str, Any] = {
            "inputs": [
                {
                    "name": self.name,
                    "datatype": self.datatype,
                    "shape": list(self.shape),
                    "parameters": {"binary_data_size": len(self.data)},
                }
            ],
            "parameters": {"binary_data_output": True, **self.parameters},
        }
        if self.outputs:
            document["outputs"] = [{"name": name} for name in self.outputs]
        head = json.dumps(document).encode()
        return client.post(
            f"/v2/models/{self.model}/versions/{self.version}/infer",
            content=head + self.data,
            headers={"Inference-Header-Content-Length": str(len(head))},
        )

    def message(self) -> pb.ModelInferRequest:
        kinds = {str: "string_param", int: "int64_param", float: "double_param"}
        return pb.ModelInferRequest(
            model_name=self.model,
            model_version=self.version,
            id="an id",
            parameters={
                name: pb.InferParameter(**{kinds[type(value)]: value})
                for name, value in self.parameters.items()
            },
            inputs=[
                pb.ModelInferRequest.InferInputTensor(
                    name=self.name, datatype=self.datatype, shape=self.shape
                )
            ],
            outputs=[
                pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in self.outputs
            ],
            raw_input_contents=[self.data],
        )


def tensors(reply: httpx.Response) -> dict[str, npt.NDArray[Any] | bytes]:
    """The binary outputs of a reply by name: arrays of UINT8 and FP32, BYTES as they are."""
    assert reply.status_code == 200, reply.text
    length = int(reply.headers["inference-header-content-length"])
    found: dict[str, npt.NDArray[Any] | bytes] = {}
    behind = reply.content[length:]
    for output in json.loads(reply.content[:length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        data, behind = behind[:size], behind[size:]
        dtype = {"UINT8": np.uint8, "FP32": np.float32}.get(output["datatype"])
        found[output["name"]] = (
            data if dtype is None else np.frombuffer(data, dtype).reshape(output["shape"])
        )
    assert not behind
    return found


@dataclass(frozen=True)
class Case:
    """A request that is wrong. words: what the error says."""

    request: Request
    words: Sequence[str]
    status: int = 400
    code: str = "INVALID_ARGUMENT"


_SMALL, _LARGE = png(street(24, 32)), png(street(30, 50))
CASES = {
    "datatype": Case(Request("FP32"), ("'FP32'", "UINT8", "BYTES")),
    "rank": Case(Request(shape=(30, 50, 3), data=IMAGES[0].tobytes()), ("[30,50,3]", "[N,H,W,3]")),
    "channels": Case(Request(shape=(2, 30, 50, 4)), ("[2,30,50,4]", "[N,H,W,3]")),
    "channels first": Case(Request(shape=(2, 3, 30, 50)), ("[2,3,30,50]", "[N,H,W,3]")),
    "no image": Case(Request(shape=(0, 30, 50, 3), data=b""), ("no pixel",)),
    "no height": Case(Request(shape=(1, 0, 50, 3), data=b""), ("no pixel",)),
    "negative": Case(Request(shape=(-1, 30, 50, 3)), ("negative",)),
    "too few bytes": Case(Request(data=IMAGES.tobytes()[:-1]), ("8999", "9000")),
    "too many bytes": Case(Request(data=IMAGES.tobytes() + b"x"), ("9001", "9000")),
    "huge shape": Case(Request(shape=(64, 2**40, 2**20, 3)), ("[64,1099511627776,1048576,3]",)),
    "65 images": Case(
        Request(shape=(65, 1, 1, 3), data=bytes(195)), ("65 images", "64"), status=413
    ),
    "too many pixels": Case(
        Request(shape=(1, 1, MAX_PIXELS + 1, 3), data=bytes(3 * MAX_PIXELS + 3)),
        (str(MAX_PIXELS + 1), "scale it down"),
        status=413,
    ),
    "too many pixels together": Case(
        Request("BYTES", (2,), elements([png(np.zeros((150, 150, 3), np.uint8))] * 2)),
        ("together", "send fewer"),
        status=413,
    ),
    "no file": Case(Request("BYTES", (1,), elements([b"hello"])), ("not an image",), status=415),
    "an empty file": Case(Request("BYTES", (1,), elements([b""])), ("empty",)),
    "half a file": Case(
        Request("BYTES", (2,), elements([_LARGE, jpeg(street(64, 64))[:-200]])), ("JPEG", "damaged")
    ),
    "a huge file": Case(
        Request("BYTES", (1,), elements([huge_png_header()])), ("20000x20000",), status=413
    ),
    "no length": Case(Request("BYTES", (1,), b"ab"), ("four bytes, little-endian",)),
    "wrong length": Case(Request("BYTES", (1,), FILES[:-1]), ("four bytes, little-endian",)),
    "two files for one": Case(Request("BYTES", (1,), FILES), ("2 elements", "says 1")),
    "files in rows": Case(Request("BYTES", (2, 1), FILES), ("[2,1]", "[N]")),
    "two sizes": Case(
        Request("BYTES", (2,), elements([_SMALL, _LARGE])),
        ("24x32", "30x50", "send them one by one"),
    ),
    "input": Case(Request(name="photo"), ("'photo'", "'image'")),
    "output": Case(
        Request(outputs=["masks"]), ("'masks'", "label_map, overlay, logits or probabilities")
    ),
    "logits elsewhere": Case(
        Request(version="2", outputs=["label_map", "logits"]), ("version 2", "--logits")
    ),
    "probabilities elsewhere": Case(
        Request(model="other", outputs=["probabilities"]), ("other version 1", "--logits")
    ),
    "scores of two sizes": Case(
        Request(
            "BYTES", (2,), elements([png(street(24, 32)), png(street(30, 50))]), outputs=["logits"]
        ),
        ("24x32", "30x50", "scores", "send them one by one"),
    ),
    "output twice": Case(Request(outputs=["overlay", "overlay"]), ("twice",)),
    "model": Case(Request(model="nope"), ("'nope'", "other, tiny"), 404, "NOT_FOUND"),
    "version": Case(Request(version="9"), ("'9'", "1, 2"), 404, "NOT_FOUND"),
    "priority": Case(Request(parameters={"priority": 9}), ("priority is 9", "1 (high)")),
    "timeout": Case(Request(parameters={"timeout": -1}), ("timeout is -1", "microseconds")),
    "timeout text": Case(Request(parameters={"timeout": "soon"}), ("'soon'", "a number")),
    "alpha": Case(Request(parameters={"alpha": 1.5}), ("alpha is 1.5",)),
    "too late": Case(
        Request(parameters={"timeout": 1}), ("allow more time",), 504, "DEADLINE_EXCEEDED"
    ),
}
