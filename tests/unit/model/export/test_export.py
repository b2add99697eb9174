"""The exported file does what the network does, and nothing wrong is ever left in its place."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from model.build import NetworkSpec
from model.contract import METADATA_KEY, Contract, InputSpec
from model.export import export as export_module
from model.export.export import SPEC_KEY, ServedNetwork, export, for_inference
from model.export.fp32_model import load_fp32
from model.export.onnx_file import random_images, session
from model.export.parity import ExportError, check_parity
from model.export.quantize import Quantizer
from model.fcn import FCN, Variant, label_map
from model.upsample import Lowering
from tests import exports
from tests.exports import CLASSES, MOBILE, SMALL


def make_network(variant: Variant = "8s") -> FCN:
    return exports.randomised(dataclasses.replace(SMALL, variant=variant))


def make_contract(logits: bool = True, classes: int = CLASSES, smallest: int = 1) -> Contract:
    contract = exports.contract_of(SMALL, logits=logits, classes=classes)
    return dataclasses.replace(contract, input=InputSpec(min_side_px=smallest))


@pytest.fixture
def exported() -> tuple[FCN, Path]:
    made = exports.exported()
    return made.network, made.path


def test_one_file_with_the_contract_inside(exported: tuple[FCN, Path]) -> None:
    _, path = exported
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    inside = Contract.from_json(metadata[METADATA_KEY])
    assert inside.input.context_px is not None  # found by the exporter
    assert inside == exports.exported().contract
    assert json.loads(metadata[SPEC_KEY]) == dataclasses.asdict(SMALL)


def test_types_and_dynamic_axes(exported: tuple[FCN, Path]) -> None:
    _, path = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    assert (image.name, image.type) == ("image", "tensor(uint8)")
    assert image.shape == ["batch", "height", "width", 3]
    labels, logits = session.get_outputs()
    assert (labels.name, labels.type) == ("label_map", "tensor(uint8)")
    assert labels.shape == ["batch", "height", "width"]
    assert (logits.name, logits.type) == ("logits", "tensor(float)")
    assert logits.shape == ["batch", CLASSES, "height", "width"]


@pytest.mark.parametrize("size", [(1, 33, 50), (3, 17, 8), (2, 96, 64), (1, 1, 70)])
def test_labels_are_those_of_the_network(
    exported: tuple[FCN, Path], size: tuple[int, int, int]
) -> None:
    network, path = exported
    images = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (labels,) = session.run(["label_map"], {"image": images})
    with torch.inference_mode():
        logits = network(torch.from_numpy(images).permute(0, 3, 1, 2).float())
    assert labels.shape == size
    assert (labels == label_map(logits).numpy()).mean() >= 0.999


def test_upsampling_is_grouped_by_class(exported: tuple[FCN, Path]) -> None:
    """The two inner ones as transposed convolutions, the last by phases."""
    graph = onnx.load(exported[1]).graph
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    upsamplings = [n for n in graph.node if n.op_type == "ConvTranspose" or _groups(n) == CLASSES]
    kinds = [node.op_type for node in upsamplings]
    assert kinds == ["ConvTranspose", "ConvTranspose", "Conv"]
    assert all(_groups(node) == CLASSES for node in upsamplings)
    shapes = [weights[node.input[1]] for node in upsamplings]
    assert shapes == [[CLASSES, 1, 4, 4], [CLASSES, 1, 4, 4], [64 * CLASSES, 1, 2, 2]]
    assert not any(node.op_type == "BatchNormalization" for node in graph.node)


def _groups(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "group"), 0)


def test_labels_are_ordered_after_arg_max(exported: tuple[FCN, Path]) -> None:
    """So one number per pixel moves; the crops are one node each."""
    graph = onnx.load(exported[1]).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.index("ArgMax") < kinds.index("DepthToSpace")
    assert kinds.count("Slice") == 5, "RGB to BGR, two inner crops, labels, logits"


@pytest.mark.parametrize("lowering", get_args(Lowering))
def test_every_lowering_is_the_same_network(lowering: Lowering) -> None:
    made = exports.exported(lowering=lowering)
    assert made.report.label_agreement == 1.0
    assert made.report.largest_logit_difference is not None
    assert made.report.largest_logit_difference < 1e-4
    assert (1, 1, 1) in made.report.sizes


@pytest.mark.parametrize("lowering", get_args(Lowering))
@pytest.mark.parametrize("variant", get_args(Variant))
def test_labels_and_logits_of_every_variant_and_lowering(
    variant: Variant, lowering: Lowering
) -> None:
    """They are computed in torch, where no file is written."""
    network = make_network(variant)
    images = torch.randint(0, 256, (2, 45, 61, 3), dtype=torch.uint8)
    with torch.inference_mode():
        wanted = network(images.permute(0, 3, 1, 2).float())
        served = ServedNetwork(for_inference(network, lowering), logits=True)
        labels, logits = served(images)
    scale = float(wanted.abs().max())
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4 * scale)
    assert (labels == label_map(wanted)).float().mean() > 0.999


def test_the_file_says_nothing_of_the_machine(exported: tuple[FCN, Path]) -> None:
    content = exported[1].read_bytes()
    assert str(Path(export_module.__file__).parent).encode() not in content
    assert b"stack_trace" not in content


def test_a_layer_in_winograds_form_becomes_8_bit_in_a_file_without_logits() -> None:
    """Its sums and products are 8-bit, and counted as the one layer they are."""
    spec = NetworkSpec("vgg16", "32s", fc6_channels=16, width=1 / 16)
    made = exports.exported(spec, logits=False, winograd=("backbone.fc6",))
    assert made.report.label_agreement >= 0.999
    assert made.report.largest_logit_difference is None
    model = load_fp32(made.path)
    assert [output.name for output in model.proto.graph.output] == ["label_map"]
    assert len(model.layers["backbone.fc6"]) == 32
    assert len(model.layers) == 15
    images = [random_images(np.random.default_rng(n), 1, 64, 80)[0] for n in range(3)]
    quantized = Quantizer(model, images).quantize(list(model.layers))
    held = {tensor.name: tensor.data_type for tensor in quantized.graph.initializer}
    dequantized = {
        node.output[0]: node.input[0]
        for node in quantized.graph.node
        if node.op_type == "DequantizeLinear"
    }
    parts = set(model.layers["backbone.fc6"])
    convolutions = [node for node in quantized.graph.node if node.name in parts]
    assert len(convolutions) == 32
    assert all(held[dequantized[n.input[1]]] == onnx.TensorProto.INT8 for n in convolutions)
    feeds = made.contract.feeds(images[0][None])
    exact, eight = (
        session(proto, optimized=False).run(["label_map"], feeds)[0]
        for proto in (model.proto, quantized)
    )
    assert (exact == eight).mean() > 0.8


def test_parity_sizes_respect_the_smallest_side(exported: tuple[FCN, Path]) -> None:
    network, path = exported
    report = check_parity(network, make_contract(smallest=40), path, [(1, 8, 50)])
    assert report.sizes == ((1, 40, 50),)


@pytest.mark.parametrize("spec", [SMALL, MOBILE], ids=lambda spec: str(spec.backbone))
def test_norms_fold_into_the_same_function(spec: NetworkSpec) -> None:
    network = exports.randomised(spec)
    folded = for_inference(network, "conv_transpose")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules()), "the original is kept"
    images = torch.rand(1, 3, 40, 50) * 255
    with torch.inference_mode():
        wanted = network(images)
        atol = 1e-4 * float(wanted.abs().max())
        torch.testing.assert_close(folded(images), wanted, rtol=1e-3, atol=atol)


def test_class_counts_must_agree(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="5 classes, its contract 4"):
        export(make_network(), make_contract(classes=4), tmp_path / "model.onnx")


def test_a_file_that_differs_is_refused_and_the_old_one_kept(
    exported: tuple[FCN, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter is made to write another network than the one it is checked against."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the old model")
    other = make_network()
    nn.init.normal_(other.score_fr.weight, std=3.0)
    wrong = onnx.load(exported[1])
    monkeypatch.setattr(export_module, "_to_onnx", lambda *_: wrong)
    with pytest.raises(ExportError, match="disagree"):
        export(other, make_contract(), path)
    assert path.read_bytes() == b"the old model"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"], "no temporary file is left"


def test_nan_never_passes(exported: tuple[FCN, Path]) -> None:
    broken = make_network()
    broken.score_fr.bias = nn.Parameter(torch.full((CLASSES,), float("nan")))
    with pytest.raises(ExportError, match="disagree"):
        check_parity(broken, make_contract(), exported[1], [(1, 32, 32)])
