"""The exported file does what the network does, and nothing wrong is ever left in its place."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from model.build import NetworkSpec, build
from model.contract import METADATA_KEY, ClassInfo, Contract, InputSpec, OutputSpec, TrainingData
from model.export import export as export_module
from model.export.export import ServedNetwork, export, for_inference
from model.export.parity import ExportError, check_parity
from model.fcn import FCN, Variant, label_map
from model.upsample import Lowering

CLASSES = 5


def make_network(variant: Variant = "8s", skip_channels: int = 4) -> FCN:
    """A MobileNetV1 FCN with random scores and norms that have seen something."""
    torch.manual_seed(0)
    spec = NetworkSpec("mobilenet_v1", variant, fc6_channels=8, skip_channels=skip_channels)
    network = build(spec, CLASSES)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean = torch.randn(module.num_features) * 0.1
            module.running_var = torch.rand(module.num_features) + 0.5
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    return network.eval()


def make_contract(logits: bool = True, classes: int = CLASSES, smallest: int = 1) -> Contract:
    return Contract(
        model_name="drawn",
        architecture="fcn8s-mobilenet_v1",
        classes=tuple(ClassInfo(i, f"class{i}", (i, i, i)) for i in range(classes)),
        training_data=TrainingData("drawn", "CC0-1.0"),
        input=InputSpec(min_side_px=smallest),
        outputs=OutputSpec(logits="logits" if logits else None),
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[FCN, Path]:
    network = make_network()
    path = tmp_path_factory.mktemp("models") / "1" / "model.onnx"
    _, report = export(network, make_contract(), path)
    assert report.label_agreement >= 0.999
    assert report.largest_logit_difference is not None
    assert report.largest_logit_difference < 1e-4
    assert (1, 1, 1) in report.sizes
    return network, path


def test_one_file_with_the_contract_inside(exported: tuple[FCN, Path]) -> None:
    _, path = exported
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    inside = Contract.from_json(metadata[METADATA_KEY])
    assert inside.input.context_px is not None  # read off the graph
    unread = dataclasses.replace(inside.input, context_px=None)
    assert dataclasses.replace(inside, input=unread) == make_contract()


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
    """On one number per pixel; the crops are one node each."""
    graph = onnx.load(exported[1]).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.index("ArgMax") < kinds.index("DepthToSpace")
    assert kinds.count("Slice") == 4, "two inner crops, labels, logits"


@pytest.mark.parametrize("lowering", get_args(Lowering))
@pytest.mark.parametrize("logits", [False, True])
def test_every_lowering_is_the_same_network(lowering: Lowering, logits: bool) -> None:
    network = make_network(skip_channels=0)
    image = torch.randint(0, 256, (2, 70, 101, 3), dtype=torch.uint8)
    served = ServedNetwork(for_inference(network, lowering), logits).eval()
    with torch.inference_mode():
        wanted = network(image.permute(0, 3, 1, 2).float())
        answer = served(image)
    labels, *scores = answer if logits else (answer,)
    assert labels.dtype == torch.uint8 and len(scores) == logits
    assert (labels == label_map(wanted)).float().mean() >= 0.9999
    for found in scores:
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("lowering", "logits"), [("phases", False), ("interpolate", True), ("conv_transpose", True)]
)
def test_every_lowering_can_be_exported(tmp_path: Path, lowering: Lowering, logits: bool) -> None:
    """The first with logits is `exported`."""
    network = make_network(skip_channels=0)
    _, report = export(network, make_contract(logits=logits), tmp_path / "m.onnx", lowering)
    assert report.label_agreement == 1.0
    assert (report.largest_logit_difference or 0) < 1e-4


def test_the_file_says_nothing_of_the_machine(exported: tuple[FCN, Path]) -> None:
    content = exported[1].read_bytes()
    assert str(Path(export_module.__file__).parent).encode() not in content
    assert b"stack_trace" not in content


@pytest.mark.parametrize("variant", ["32s", "16s"])
def test_other_variants_without_logits(tmp_path: Path, variant: Variant) -> None:
    path = tmp_path / "model.onnx"
    _, report = export(make_network(variant, skip_channels=0), make_contract(logits=False), path)
    assert report.label_agreement >= 0.999
    assert report.largest_logit_difference is None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["label_map"]


def test_parity_sizes_respect_the_smallest_side(exported: tuple[FCN, Path]) -> None:
    network, path = exported
    report = check_parity(network, make_contract(smallest=40), path, [(1, 8, 50)])
    assert report.sizes == ((1, 40, 50),)


def test_norms_fold_into_the_same_function() -> None:
    network = make_network()
    folded = for_inference(network, "conv_transpose")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules()), "the original is kept"
    images = torch.rand(1, 3, 40, 50) * 255
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), network(images), rtol=1e-3, atol=1e-3)


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
