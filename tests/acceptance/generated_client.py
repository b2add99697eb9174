"""Asks a server for every output with the client that openapi-python-client made of its page.

    python generated_client.py URL IMAGE FOLDER

Run where the package `fcn_api` lies. Writes each answer to FOLDER/OUTPUT, and prints a line each.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

from fcn_api import Client
from fcn_api.api.models import get_model, list_models
from fcn_api.api.open_inference_protocol import model_infer, model_metadata
from fcn_api.api.segmentation import segment
from fcn_api.api.server import livez
from fcn_api.models import (
    ClassReport,
    ImageForm,
    InferInput,
    InferInputDatatype,
    InferRequest,
    Polygons,
    Problem,
    SegmentOutput,
)
from fcn_api.types import File


def main(url: str, image: Path, folder: Path) -> None:
    client = Client(url)
    for output in SegmentOutput:
        with image.open("rb") as file:
            answer = segment.sync_detailed(
                client=client, body=File(file), model="tiny", version="1", output=output
            )
        assert answer.status_code == 200, answer
        content = answer.parsed.payload.read()
        assert content == answer.content
        (folder / output.value).write_bytes(content)
        print(output.value, answer.headers["content-type"])
    for name, kind in (("json", ClassReport), ("rle", ClassReport), ("polygons", Polygons)):
        document = json.loads((folder / name).read_bytes())
        assert kind.from_dict(document).to_dict() == document
    form = segment.sync(client=client, body=ImageForm(image=File(image.open("rb"))), alpha=0.5)
    assert form.payload.read().startswith(b"\x89PNG")
    with image.open("rb") as file:
        wrong = segment.sync(client=client, body=File(file), model="nope", classes=["red", "2"])
    assert isinstance(wrong, Problem), wrong
    print("problem", wrong.status, wrong.type_)
    models = list_models.sync(client=client)
    print("models", [model.name for model in models.models])
    model = get_model.sync("tiny", client=client)
    print("classes", [found.name for found in model.versions[0].contract.classes])
    print("livez", livez.sync(client=client).status)
    print("inputs", [found.name for found in model_metadata.sync("tiny", client=client).inputs])
    files = InferInput(
        name="image",
        shape=[1],
        datatype=InferInputDatatype.BYTES,
        data=[base64.b64encode(image.read_bytes()).decode()],
    )
    reply = model_infer.sync("tiny", client=client, body=InferRequest(inputs=[files]))
    print("infer", [output.name for output in reply.outputs])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
