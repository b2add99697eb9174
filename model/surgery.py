"""Net surgery: a classifier's weights into a fully convolutional network.

A fully connected layer is a convolution whose kernel covers its whole input, so [O, C*H*W] becomes
[O,C,H,W] by a reshape and computes the same. Source: arXiv 1411.4038 section 3.1; `transplant` in
surgery.py of shelhamer/fcn.berkeleyvision.org.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from model.backbones.norms import make_identity, norm_pairs
from model.weights.layers import Array, Layer, LayerWeights, WeightsError

Action = Literal["copied", "reshaped", "folded", "dropped", "unknown", "missing", "mismatch"]
_COPIED: Action = "copied"
_RESHAPED: Action = "reshaped"
_PROBLEMS: tuple[Action, ...] = ("missing", "mismatch")


class Row(NamedTuple):
    """Tells what became of one layer, by the network's name for it; `detail` for people."""

    layer: str
    action: Action
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Reports layer by layer: the network's in its order, then what else the file holds."""

    rows: tuple[Row, ...]

    @property
    def problems(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.action in _PROBLEMS)

    def with_folded(self, folded: Mapping[str, str]) -> Report:
        """Adds layers of the file that are now part of another: each -> that one."""
        rows = (Row(layer, "folded", f"into {into}") for layer, into in folded.items())
        return Report((*self.rows, *rows))

    def layers(self, action: Action) -> list[str]:
        return [row.layer for row in self.rows if row.action == action]

    def require(self, source: str) -> None:
        """Raises: WeightsError naming every layer that is missing or does not fit."""
        if self.problems:
            said = "; ".join(f"{row.layer}: {row.action}, {row.detail}" for row in self.problems)
            raise WeightsError(f"{source} does not fit the network: {said}")

    def table(self) -> str:
        width = max(len(row.layer) for row in self.rows)
        return "\n".join(
            f"{row.layer:{width}}  {row.action:8}  {row.detail}".rstrip() for row in self.rows
        )


class Shapes(NamedTuple):
    """Holds the shapes of one layer; `bias` None where it has none."""

    weight: tuple[int, ...]
    bias: tuple[int, ...] | None


def shapes_of(network: nn.Module, needed: Mapping[str, str]) -> dict[str, Shapes]:
    """List the shapes of layers of `network`, which may be on the "meta" device. `needed`: see
    `transplant`."""
    shapes = {}
    for name, path in needed.items():
        parameters = dict(network.get_submodule(path).named_parameters(recurse=False))
        bias, norm = parameters.get("bias"), _norm_after(network, path)
        bias = norm.bias if bias is None and norm is not None else bias
        shapes[name] = Shapes(
            tuple(parameters["weight"].shape), None if bias is None else tuple(bias.shape)
        )
    return shapes


def _norm_after(network: nn.Module, path: str) -> nn.BatchNorm2d | None:
    """Finds the batch norm that follows a convolution, which takes its bias where it has none."""
    parent, _, name = path.rpartition(".")
    for pair in norm_pairs(network.get_submodule(parent)):
        if pair.owner is network.get_submodule(parent) and pair.conv_name == name:
            return pair.norm
    return None


def convolutions(network: nn.Module) -> dict[str, str]:
    """List what an importer must fill: layers -> the paths of their convolutions. A layer that
    is a convolution and its norm has the name of both."""
    return {
        path.removesuffix(".conv"): path
        for path, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    }


def fit_layers(
    layers: LayerWeights, wanted: Mapping[str, Shapes], dropped: Container[str] = ()
) -> tuple[LayerWeights, Report]:
    """Gives `layers` the shapes of `wanted`, float32, and reports it; those that do not fit are
    left out and in the report. `dropped`: layers that are known but not wanted.
    """
    fitted: LayerWeights = {}
    rows = []
    for name, shapes in wanted.items():
        if name not in layers:
            rows.append(Row(name, "missing", f"want {_sides(shapes.weight)}"))
            continue
        try:
            fitted[name], action = _fit(layers[name], shapes)
        except WeightsError as error:
            rows.append(Row(name, "mismatch", str(error)))
            continue
        before, after = _sides(layers[name].weight.shape), _sides(shapes.weight)
        rows.append(Row(name, action, after if before == after else f"{before} -> {after}"))
    for name, layer in layers.items():
        if name not in wanted:
            kind: Action = "dropped" if name in dropped else "unknown"
            rows.append(Row(name, kind, _sides(layer.weight.shape)))
    return fitted, Report(tuple(rows))


@torch.no_grad()
def transplant(
    network: nn.Module,
    layers: LayerWeights,
    needed: Mapping[str, str] | None = None,
    *,
    dropped: Container[str] = (),
    strict: bool = True,
    source: str = "the weights file",
) -> Report:
    """Fill the `needed` layers of `network`: a layer's name -> the path of its module (None: all
    convolutions). A norm after one becomes the identity.

    If `strict`, nothing is changed unless all of them fit; else those that do not keep theirs.
    Raises: WeightsError.
    """
    paths = convolutions(network) if needed is None else needed
    fitted, report = fit_layers(layers, shapes_of(network, paths), dropped)
    if strict:
        report.require(source)
    for name, layer in fitted.items():
        parameters = dict(network.get_submodule(paths[name]).named_parameters(recurse=False))
        parameters["weight"].copy_(torch.from_numpy(layer.weight))
        norm = _norm_after(network, paths[name])
        if norm is not None:
            make_identity(norm)
        if layer.bias is not None:
            bias = parameters["bias"] if "bias" in parameters or norm is None else norm.bias
            bias.copy_(torch.from_numpy(layer.bias))
    return report


def _fit(layer: Layer, shapes: Shapes) -> tuple[Layer, Action]:
    """Raises: WeightsError saying what does not fit."""
    if (layer.bias is None) != (shapes.bias is None):
        raise WeightsError("has no bias" if layer.bias is None else "has a bias, want none")
    bias = None
    if layer.bias is not None and shapes.bias is not None:
        if layer.bias.size != prod(shapes.bias) or layer.bias.shape[-1] != layer.bias.size:
            raise WeightsError(f"bias {_sides(layer.bias.shape)}, want {_sides(shapes.bias)}")
        bias = np.array(layer.bias, np.float32).reshape(shapes.bias)
    weight, action = layer.weight, _COPIED
    if weight.shape != shapes.weight:
        weight, action = _convolutionalised(layer, shapes.weight), _RESHAPED
    weight = np.array(weight, np.float32, order="C")
    if not np.isfinite(weight).all() or (bias is not None and not np.isfinite(bias).all()):
        raise WeightsError("holds values that are not finite")
    return Layer(weight, bias), action


def _convolutionalised(layer: Layer, wanted: tuple[int, ...]) -> Array:
    """Turns [O, C*H*W] into [O,C,H,W]. Raises: WeightsError."""
    flat = layer.weight
    if flat.ndim == 4 and flat.shape[:2] == (1, 1):
        flat = flat[0, 0]  # Caffe's old shape of a fully connected layer
    if flat.ndim != 2 or len(wanted) != 4 or flat.shape != (wanted[0], prod(wanted[1:])):
        raise WeightsError(f"weight {_sides(layer.weight.shape)}, want {_sides(wanted)}")
    outputs, channels, height, width = wanted
    if layer.flatten == "HWC":
        return flat.reshape(outputs, height, width, channels).transpose(0, 3, 1, 2)
    return flat.reshape(wanted)


def _sides(shape: Iterable[int]) -> str:
    return "x".join(str(side) for side in shape)
