"""Narrow nets of the paper as ONNX files: normalisation across channels, odd deconvolutions."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from model.backbones.alexnet import AlexNet
from model.backbones.base import Backbone
from model.backbones.caffe import Padding
from model.backbones.googlenet import GoogLeNet
from model.backbones.vgg16 import VGG16
from model.export.export import ServedNetwork, export, for_inference
from model.fcn import FCN
from tests.unit.model.export.test_export import make_contract


def backbone(name: str, padding: Padding) -> Backbone:
    if name == "alexnet":
        return AlexNet(padding, 8, width=1 / 32)
    if name == "googlenet":
        return GoogLeNet(padding, width=1 / 16)
    if name == "whole vgg16":
        return VGG16(padding, 8, width=1 / 16)
    return VGG16(padding, width=1 / 16, cut_after="pool3")


@pytest.mark.parametrize(
    ("name", "variant", "padding", "kernels"),
    [
        ("alexnet", "32s", "pad100", [63]),
        ("googlenet", "8s", "same", [3, 3, 15]),
        ("vgg16", "pool3", "pad100", [16]),
        ("whole vgg16", "4s", "pad100", [4, 4, 4, 8]),
    ],
)
def test_the_file_does_what_the_network_does(
    tmp_path: Path, name: str, variant: str, padding: Padding, kernels: list[int]
) -> None:
    torch.manual_seed(0)
    network = FCN(backbone(name, padding), 5, variant)  # type: ignore[arg-type]
    for layer_name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            if layer_name.startswith("score"):
                nn.init.normal_(layer.weight)
            nn.init.constant_(layer.bias, 0.2)  # type: ignore[arg-type]
    path = tmp_path / "model.onnx"
    _, report = export(network.eval(), make_contract(), path, "conv_transpose")
    assert report.label_agreement >= 0.999
    assert report.largest_logit_difference is not None
    assert report.largest_logit_difference < 1e-4
    nodes = onnx.load(path).graph.node
    got = [
        next(attribute.ints[0] for attribute in node.attribute if attribute.name == "kernel_shape")
        for node in nodes
        if node.op_type == "ConvTranspose"
    ]
    assert got == kernels
    images = torch.randint(0, 256, (1, 45, 61, 3), dtype=torch.uint8)
    with torch.inference_mode():
        wanted = network(images.permute(0, 3, 1, 2).float())
        _, logits = ServedNetwork(for_inference(network), logits=True)(images)
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
