"""An exported file becomes a network again, and only if it is the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper

from model.build import NetworkSpec
from model.contract import METADATA_KEY, Contract
from model.export.network_from_onnx import NetworkFromOnnxError, network_from_onnx
from model.fcn import FCN
from tests import exports, tiny_models
from tests.exports import MOBILE


@pytest.fixture
def exported() -> tuple[FCN, Path]:
    made = exports.exported(MOBILE)
    return made.network, made.path


def renamed(path: Path, target: Path, architecture: str) -> Path:
    proto = onnx.load(str(path))
    own = Contract.from_metadata({p.key: p.value for p in proto.metadata_props}, str(path))
    own = dataclasses.replace(own, architecture=architecture)
    onnx.helper.set_model_props(proto, {METADATA_KEY: own.to_json()})
    onnx.save(proto, str(target))
    return target


def turned_round(path: Path, target: Path) -> Path:
    """The last upsampling changes the sign, so that the least likely class wins."""
    proto = onnx.load(str(path))
    (kernels,) = (t for t in proto.graph.initializer if list(t.dims[1:]) == [1, 2, 2])
    kernels.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(kernels), kernels.name))
    onnx.save(proto, str(target))
    return target


def test_the_logits_are_those_of_the_network(exported: tuple[FCN, Path]) -> None:
    network, path = exported
    found, own = network_from_onnx(path)
    assert own.architecture == "fcn8s-mobilenet_v1_0.125"
    assert not found.training
    images = torch.rand(2, 3, 50, 41) * 255
    with torch.inference_mode():
        torch.testing.assert_close(found(images), network(images), rtol=1e-3, atol=1e-3)


def test_a_vgg16_with_its_preprocessing() -> None:
    spec = NetworkSpec(
        "vgg16", "32s", batch_norm=True, preprocessing="torchvision", fc6_channels=8, width=1 / 32
    )
    made = exports.exported(spec, logits=False)
    found, _ = network_from_onnx(made.path)
    assert found.spec == spec
    images = torch.rand(1, 3, 33, 40) * 255
    with torch.inference_mode():
        torch.testing.assert_close(found(images), made.network(images), rtol=1e-3, atol=1e-3)


def test_a_file_of_before_networks_were_described(
    exported: tuple[FCN, Path], tmp_path: Path
) -> None:
    """Its name and its weights tell the same, as the shipped model's do."""
    found, _ = network_from_onnx(renamed(exported[1], tmp_path / "old.onnx", MOBILE.architecture))
    assert found.spec == MOBILE


def test_what_cannot_be_rebuilt_is_refused(exported: tuple[FCN, Path], tmp_path: Path) -> None:
    _, path = exported
    (tmp_path / "noise.onnx").write_bytes(b"no model")
    bare = onnx.load(str(path))
    del bare.metadata_props[:]
    onnx.save(bare, str(tmp_path / "bare.onnx"))
    refusals = [
        (tmp_path / "noise.onnx", "cannot be read as an ONNX model"),
        (tmp_path / "bare.onnx", "has no contract"),
        (tiny_models.write_model(tmp_path), "does not say how it was built"),
        (
            renamed(path, tmp_path / "wide.onnx", "fcn8s-mobilenet_v1"),
            r"conv0.conv.weight is \(8, 3, 3, 3\), want \(32, 3, 3, 3\)",
        ),
        (renamed(path, tmp_path / "bn.onnx", "fcn8s-vgg16"), "does not say how it was built"),
        (turned_round(path, tmp_path / "other.onnx"), "ONNX Runtime and PyTorch disagree"),
    ]
    for refused, message in refusals:
        with pytest.raises(NetworkFromOnnxError, match=message):
            network_from_onnx(refused)
