"""From an exported file back to a network of torch: `export` the other way round.

For what must run in torch, as a teacher in training does. Norms stay folded.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from model.backbones.norms import fold_norms
from model.build import NetworkSpec, build
from model.contract import Contract
from model.export.export import SPEC_KEY
from model.export.onnx_file import NotExported, metadata, read_exported
from model.export.parity import check_parity
from model.network import SegmentationNetwork

_PREFIX = "network."


class NetworkFromOnnxError(ValueError):
    """A file does not hold a network that can be rebuilt; the message says why."""


def network_from_onnx(path: Path) -> tuple[SegmentationNetwork, Contract]:
    """Rebuilds the network of a file that `fcn export` wrote in fp32, and reads its contract.

    Its labels have been compared with the file's on random images. Raises: NetworkFromOnnxError.
    """
    try:
        proto, contract = read_exported(path)
    except NotExported as error:
        raise NetworkFromOnnxError(str(error)) from error
    weights = _weights(proto.graph)
    try:
        spec = _spec(metadata(proto).get(SPEC_KEY), contract.architecture, weights)
        network = build(spec, len(contract.classes))
        fold_norms(network.eval())
        _fill(network, weights)
        check_parity(network, contract, path)
    except (TypeError, ValueError) as error:  # of a spec, of weights, and of their comparison
        raise NetworkFromOnnxError(
            f"{path} ({contract.architecture}, {contract.precision}) cannot be rebuilt in torch: "
            f"{error}; give an fp32 file exported anew, or the run's checkpoint"
        ) from error
    return network.eval(), contract


def _spec(said: str | None, architecture: str, weights: dict[str, Any]) -> NetworkSpec:
    """Raises: ValueError if the file does not say how its network was built."""
    if said is not None:
        return NetworkSpec.from_saved(json.loads(said))
    # Files of earlier versions, as the shipped model's.
    found = re.fullmatch(r"fcn(32s|16s|8s)-mobilenet_v1(?:_([\d.]+))?", architecture)
    if found is None:
        raise ValueError("it does not say how it was built")
    return NetworkSpec(
        "mobilenet_v1",
        cast(Any, found[1]),
        fc6_channels=len(weights.get("backbone.fc6.conv.weight", ())),
        skip_channels=len(weights.get("score_pool4.0.weight", ())),
        width=float(found[2] or 1),
    )


def _weights(graph: onnx.GraphProto) -> dict[str, Any]:
    """Collect the weights by their names in the network.

    Only the place of biases can be relied on: the exporter keeps one of several that are equal, and
    leaves out those of zeros.
    """
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


@torch.no_grad()
def _fill(network: SegmentationNetwork, weights: dict[str, Any]) -> None:
    """Raises: ValueError naming a layer that is missing or does not fit."""
    for name, value in network.state_dict().items():
        if name not in weights:
            raise ValueError(f"it has no {name}")
        if weights[name].shape != tuple(value.shape):
            raise ValueError(f"{name} is {weights[name].shape}, want {tuple(value.shape)}")
        value.copy_(torch.from_numpy(weights[name].astype(np.float32)))
