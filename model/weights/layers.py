"""The layers of a weights file, by the names the file has for them, as every reader gives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FlattenOrder = Literal["CHW", "HWC"]
Convention = Literal["caffe", "torchvision", "keras", "plain"]
"""Whose file it is: decides the names of its layers and the pixels they were trained on."""


class WeightsError(ValueError):
    """A weights file is damaged, of another network or not what its name says; names the file or
    the layer."""


class Layer(NamedTuple):
    """Holds a layer's numbers.

    `weight`: [O,I,H,W] of a convolution, [O,I] of a fully connected layer ([1,1,O,I] in old
    Caffe files). `bias`: [O], or [1,1,1,O], or None. `flatten`: the order in which a fully
    connected layer took its input map's cells: CHW in Caffe and PyTorch, HWC in Keras.
    """

    weight: Array
    bias: Array | None = None
    flatten: FlattenOrder = "CHW"


LayerWeights = dict[str, Layer]


class Norm(NamedTuple):
    """Holds a batch norm's statistics: (x - mean) / sqrt(variance + eps) * scale + shift; each
    [C]. The file does not say `eps`."""

    mean: Array
    variance: Array
    scale: Array | None = None
    shift: Array | None = None


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """Holds a file's layers and batch norms in its own order and names."""

    layers: LayerWeights
    convention: Convention
    norms: dict[str, Norm] = field(default_factory=dict)


_KINDS = {
    "w": "weight", "weight": "weight", "b": "bias", "bias": "bias",
    "kernel": "kernel", "depthwise_kernel": "depthwise",
    "gamma": "scale", "beta": "shift",
    "running_mean": "mean", "moving_mean": "mean",
    "running_var": "variance", "moving_variance": "variance",
}  # fmt: skip
"""Kinds of array, by the last part of its name."""
_UNUSED = "num_batches_tracked"
"""PyTorch's norms count in it; it has no part in what they compute."""


def pair_up(
    arrays: dict[str, Array], source: str, convention: Convention | None = None
) -> WeightsFile:
    """Makes layers of arrays named `<layer>/w` and `/b`, `<layer>.weight` and `.bias`, or as Keras
    does `<layer>/kernel` and `/bias` (`:0` at the end allowed), its kernels [H,W,I,O] or [I,O],
    `depthwise_kernel` [H,W,C,1]. Batch norms are known by their `running_mean` or `moving_mean`.

    `convention` None: `keras` if there are kernels, else `plain`.
    Raises: WeightsError naming an array of another name, or a bias without its weight.
    """
    found: dict[str, dict[str, Array]] = {}
    for key, array in arrays.items():
        path = key.removesuffix(":0")
        cut = max(path.rfind("/"), path.rfind("."))
        layer, kind = path[:cut], _KINDS.get(path[cut + 1 :], "")
        if path[cut + 1 :] == _UNUSED:
            continue
        if not np.issubdtype(array.dtype, np.floating):
            raise WeightsError(f"{source}: {key!r} holds {array.dtype}, not floating-point numbers")
        if cut <= 0 or not kind:
            raise WeightsError(
                f"{source}: cannot tell the layer of {key!r}: want <layer>/w and <layer>/b, "
                "<layer>.weight and <layer>.bias, or <layer>/kernel and <layer>/bias"
            )
        parts = found.setdefault(layer, {})
        kernels = {"weight", "kernel", "depthwise"}
        if kind in parts or (kind in kernels and kernels & parts.keys()):
            raise WeightsError(f"{source}: layer {layer!r} has two arrays of the kind of {key!r}")
        parts[kind] = array
    layers: LayerWeights = {}
    norms: dict[str, Norm] = {}
    for name, parts in found.items():
        if parts.keys() & {"mean", "variance", "scale", "shift"}:
            norms[name] = _norm(name, parts, source)
        else:
            layers[name] = _layer(name, parts, source)
    keras = any(parts.keys() & {"kernel", "depthwise"} for parts in found.values())
    return WeightsFile(layers, convention or ("keras" if keras else "plain"), norms)


def _norm(name: str, parts: dict[str, Array], source: str) -> Norm:
    if "mean" not in parts or "variance" not in parts:
        raise WeightsError(f"{source}: the norm {name!r} has no running mean and variance")
    scale = parts.get("scale", parts.get("weight"))
    shift = parts.get("shift", parts.get("bias"))
    norm = Norm(parts["mean"], parts["variance"], scale, shift)
    shapes = {array.shape for array in norm if array is not None}
    if len(shapes) != 1 or norm.mean.ndim != 1:
        raise WeightsError(f"{source}: the arrays of the norm {name!r} differ in length")
    return norm


def _layer(name: str, parts: dict[str, Array], source: str) -> Layer:
    bias = parts.get("bias")
    if "kernel" in parts:
        return _from_keras(name, parts["kernel"], bias, source)
    if "depthwise" in parts:
        kernel = parts["depthwise"]
        if kernel.ndim != 4 or kernel.shape[3] != 1:
            raise WeightsError(
                f"{source}: the depthwise kernel of {name!r} is {kernel.shape}: want H,W,C,1"
            )
        return Layer(kernel.transpose(2, 3, 0, 1), bias)
    if "weight" not in parts:
        raise WeightsError(f"{source}: layer {name!r} has a bias but no weight")
    return Layer(parts["weight"], bias)


def _from_keras(name: str, kernel: Array, bias: Array | None, source: str) -> Layer:
    if kernel.ndim == 4:
        return Layer(kernel.transpose(3, 2, 0, 1), bias)
    if kernel.ndim == 2:
        return Layer(kernel.T, bias, "HWC")
    raise WeightsError(f"{source}: the kernel of {name!r} is {kernel.shape}: want 2 or 4 sides")
