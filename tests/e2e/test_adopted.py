"""Networks of other makes, adopted by the command, behind a real server."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cli.main import main
from fcn_client.stubs import segmentation_pb2 as pb
from model.export.adopt import PRESETS, AdoptOptions, open_network
from model.export.adopt.original import Original
from model.export.adopt.probe import probe
from model.export.adopt.reference import reference
from tests.foreign_graphs import attention, dilated
from tests.serving import Server, running

CLASSES = """
name: drawn
licence: CC0-1.0
classes:
  - {name: ground, color: [90, 90, 90]}
  - {name: roof, color: [200, 30, 20]}
  - {name: tree, color: [10, 180, 40]}
  - {name: water, color: [5, 60, 220]}
  - {name: sky, color: [120, 200, 250]}
"""
NETWORKS: dict[str, Any] = {
    "dilated": (dilated, ("N", 3, "H", "W")),
    "attention": (attention, ("N", 3, "H", "W")),
    "attention-fixed": (attention, (1, 3, 64, 96)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adopted")
    (folder / "classes.yaml").write_text(CLASSES)
    words = ["--classes", str(folder / "classes.yaml"), "--repository", str(folder / "models")]
    for name, (make, dims) in NETWORKS.items():
        path = make(folder / f"{name}.onnx", dims=dims)
        assert main(["adopt", str(path), "--name", name, "--normalise", "imagenet", *words]) == 0
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with running(folder / "models", default_model="dilated") as server:
        yield server


@pytest.mark.parametrize("name", NETWORKS)
def test_an_odd_image(name: str, folder: Path, server: Server) -> None:
    """REST and gRPC give its label map, in its size, as the reference pipeline has it."""
    rough = np.random.default_rng(5).integers(0, 256, (14, 10, 3), np.uint8)
    image = np.asarray(Image.fromarray(rough).resize((157, 211), Image.Resampling.BICUBIC))
    body = io.BytesIO()
    Image.fromarray(image).save(body, "PNG")
    reply = server.rest.post(f"/segment?model={name}", content=body.getvalue())
    assert reply.status_code == 200, reply.text
    labels = np.asarray(Image.open(io.BytesIO(reply.content)))
    assert labels.shape == (211, 157)
    options = AdoptOptions(PRESETS["imagenet"])
    original = Original(open_network(folder / f"{name}.onnx"))
    wanted, _ = reference(original, probe(original, options, 5), options, image[None])
    assert len(np.unique(wanted)) > 1
    assert (labels == wanted[0]).mean() >= 0.999
    rpc = server.stub.Segment(pb.SegmentRequest(image=body.getvalue(), model=name), timeout=10)
    assert (np.asarray(Image.open(io.BytesIO(rpc.body))) == labels).all()
