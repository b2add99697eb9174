"""From an exported file back to a network of torch: `export` the other way round.

For what must run in torch, as a teacher in training does. Norms stay folded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from model.backbones.vgg16 import Normalisation
from model.build import BackboneName, NetworkSpec, build
from model.contract import Contract, ContractError
from model.export.export import fold_norms
from model.export.parity import ExportError, check_parity
from model.fcn import FCN

_PREFIX = "network."
_ARCHITECTURE = re.compile(
    r"fcn(?P<variant>32s|16s|8s)-(?P<backbone>" + "|".join(get_args(BackboneName)) + r")"
    r"(?P<norm>_bn)?(_(?P<width>[\d.]+))?(?P<padded>-pad100)?"
)


class NetworkFromOnnxError(ValueError):
    """A file does not hold a network that can be rebuilt; the message says why."""


def network_from_onnx(path: Path) -> tuple[FCN, Contract]:
    """The network of a file that `fcn export` wrote, in fp32, and its contract.

    Its labels have been compared with the file's on random pictures. Raises: NetworkFromOnnxError.
    """
    try:
        proto = onnx.load(str(path))
    except Exception as error:  # protobuf's have no base class of their own
        raise NetworkFromOnnxError(f"{path} cannot be read as an ONNX model: {error}") from error
    try:
        contract = Contract.from_metadata({p.key: p.value for p in proto.metadata_props}, str(path))
    except ContractError as error:
        raise NetworkFromOnnxError(str(error)) from error
    weights = _weights(proto.graph)
    problem = "it is none of this project's networks"
    for spec in _specs(contract, weights):
        network = fold_norms(build(spec, len(contract.classes)))
        try:
            _fill(network, weights)
            check_parity(network, contract, path)
        except (ExportError, NetworkFromOnnxError) as error:
            problem = str(error)
        else:
            return network.eval(), contract
    raise NetworkFromOnnxError(
        f"{path} ({contract.architecture}, {contract.precision}) cannot be rebuilt in torch: "
        f"{problem}; give the fp32 file or the run's checkpoint"
    )


def _weights(graph: onnx.GraphProto) -> dict[str, Any]:
    """By their names in the network. Of the biases only the place can be relied on: the exporter
    keeps one of several that are equal, and leaves out those of zeros."""
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights: dict[str, Any] = {}
    for node in graph.node:
        if len(node.input) < 2 or not node.input[1].startswith(_PREFIX):
            continue
        name = node.input[1].removeprefix(_PREFIX)
        weights[name] = held[node.input[1]]
        bias = held[node.input[2]] if len(node.input) > 2 else np.zeros(len(weights[name]))
        weights[name.removesuffix("weight") + "bias"] = bias
    return weights


def _specs(contract: Contract, weights: dict[str, Any]) -> Iterator[NetworkSpec]:
    """What the network may be: its pixels show only in what it computes."""
    found = _ARCHITECTURE.fullmatch(contract.architecture)
    if found is None:
        return
    backbone = found["backbone"]
    fc6 = weights.get("backbone.fc6.conv.weight", weights.get("backbone.fc6.weight"))
    skip = weights.get("score_pool4.0.weight")
    inner = weights.get("upscore2.weight")
    fields: dict[str, Any] = {
        "backbone": backbone,
        "variant": found["variant"],
        "upsampling": "learned" if inner is not None and inner.shape[1] > 1 else "fixed",
        "fc6_channels": 0 if fc6 is None else len(fc6),
        "skip_channels": 0 if skip is None else len(skip),
        "padding": "pad100" if found["padded"] else "same",
        "width": float(found["width"] or 1),
    }
    if backbone == "googlenet":
        fields["fc6_channels"] = None
    pixels = get_args(Normalisation) if backbone == "vgg16" else (None,)
    for normalisation in pixels:
        yield NetworkSpec(**fields, normalisation=normalisation)


@torch.no_grad()
def _fill(network: FCN, weights: dict[str, Any]) -> None:
    """Raises: NetworkFromOnnxError naming a layer that is missing or does not fit."""
    for name, value in network.state_dict().items():
        if name not in weights:
            raise NetworkFromOnnxError(f"it has no {name}")
        if weights[name].shape != tuple(value.shape):
            raise NetworkFromOnnxError(
                f"{name} is {weights[name].shape}, want {tuple(value.shape)}"
            )
        value.copy_(torch.from_numpy(weights[name].astype(np.float32)))
