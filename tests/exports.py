"""Exported networks, each made once for all tests of a process: torch's exporter is what takes the
suite longest."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn

from model.build import NetworkSpec, build
from model.contract import ClassInfo, Contract, OutputSpec, TrainingData
from model.export.export import export
from model.export.parity import ParityReport
from model.fcn import FCN
from model.upsample import Lowering

CLASSES = 5
SMALL = NetworkSpec("vgg16", "8s", batch_norm=True, fc6_channels=8, width=1 / 16)
"""The network with skips and norms that is exported fastest."""
MOBILE = NetworkSpec("mobilenet_v1", "8s", fc6_channels=8, skip_channels=4, width=1 / 8)

_FOLDER = tempfile.TemporaryDirectory(prefix="fcn-exports-")


@dataclass(frozen=True, slots=True)
class Exported:
    """`path`: nobody may write there. `contract`: as the file has it."""

    network: FCN
    path: Path
    contract: Contract
    report: ParityReport


def randomised(spec: NetworkSpec, classes: int = CLASSES) -> FCN:
    """With random scores, biases and norms that have seen something, in eval mode."""
    torch.manual_seed(0)
    network = build(spec, classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean = torch.randn(module.num_features) * 0.1
            module.running_var = torch.rand(module.num_features) + 0.5
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.2)
    return network.eval()


def contract_of(spec: NetworkSpec, *, logits: bool = True, classes: int = CLASSES) -> Contract:
    return Contract(
        model_name="small",
        architecture=spec.architecture,
        classes=tuple(ClassInfo(i, f"class{i}", (i, i, i)) for i in range(classes)),
        training_data=TrainingData("none", "CC0-1.0"),
        outputs=OutputSpec(logits="logits" if logits else None),
    )


def exported(
    spec: NetworkSpec = SMALL,
    lowering: Lowering = "phases",
    *,
    logits: bool = True,
    winograd: tuple[str, ...] = (),
) -> Exported:
    return _exported(spec, lowering, logits, winograd)


@cache
def _exported(
    spec: NetworkSpec, lowering: Lowering, logits: bool, winograd: tuple[str, ...]
) -> Exported:
    network = randomised(spec)
    path = Path(tempfile.mkdtemp(dir=_FOLDER.name)) / "1" / "model.onnx"
    contract = contract_of(spec, logits=logits)
    contract, report = export(network, contract, path, lowering, winograd=winograd)
    return Exported(network, path, contract, report)
