"""The KServe SDK's client, over REST and gRPC, against a running server.

`python kserve_client.py URL TARGET FOLDER`: see triton_clients.py. A process of its own, because
both packages bring the protocol's messages, under the same names.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

MODEL, VERSION = "tiny", "1"
URL, TARGET, FOLDER = sys.argv[1:]
IMAGES = np.load(Path(FOLDER) / "images.npy")
LABEL_MAPS = np.load(Path(FOLDER) / "label_maps.npy")
FILES = np.array(
    [(Path(FOLDER) / f"{n}.png").read_bytes() for n in range(len(IMAGES))], dtype=np.object_
)


def check(label_maps: Any, what: str) -> None:
    np.testing.assert_array_equal(np.asarray(label_maps), LABEL_MAPS, what)
    print(what, "ok")


async def main() -> None:
    def request(array: Any, datatype: str, binary: bool, *outputs: str) -> InferRequest:
        tensor = InferInput("image", list(array.shape), datatype)
        tensor.set_data_from_numpy(array, binary_data=binary)
        return InferRequest(
            MODEL,
            [tensor],
            request_id="k1",
            model_version=VERSION,
            request_outputs=[RequestedOutput(name) for name in outputs],
        )

    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    if not (await rest.is_server_live(URL) and await rest.is_server_ready(URL)):
        raise RuntimeError("not ready")
    if not await rest.is_model_ready(URL, MODEL):
        raise RuntimeError("readiness of models")
    # Its addresses name no version: `first` is an alias of version 1.
    for binary in (True, False):
        reply = await rest.infer(URL, request(IMAGES, "UINT8", binary), model_name="first")
        check(reply.outputs[0].as_numpy(), f"kserve REST binary={binary}")
    grpc = InferenceGRPCClient(TARGET)
    for array, datatype in ((IMAGES, "UINT8"), (FILES, "BYTES")):
        reply = await grpc.infer(request(array, datatype, True))
        check(reply.outputs[0].as_numpy(), f"kserve gRPC {datatype}")
    reply = await grpc.infer(request(IMAGES, "UINT8", True, "logits", "probabilities"))
    for output in reply.outputs:
        check(output.as_numpy().argmax(axis=1), f"kserve gRPC {output.name}")
    await rest.close()
    await grpc.close()


asyncio.run(main())
