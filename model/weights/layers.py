"""What every reader gives: the layers of a file, by the names the file has for them."""

from __future__ import annotations

from dataclasses import dataclass
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
    """`weight`: [O,I,H,W] of a convolution, [O,I] of a fully connected layer ([1,1,O,I] in old
    Caffe files). `bias`: [O], or [1,1,1,O], or None. `flatten`: the order in which a fully
    connected layer took its input map's cells: CHW in Caffe and PyTorch, HWC in Keras.
    """

    weight: Array
    bias: Array | None = None
    flatten: FlattenOrder = "CHW"


LayerWeights = dict[str, Layer]


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A file's layers in its own order and names."""

    layers: LayerWeights
    convention: Convention


def pair_up(arrays: dict[str, Array], source: str) -> tuple[LayerWeights, Convention]:
    """Layers from arrays named `<layer>/w` and `/b`, `<layer>.weight` and `.bias`, or as Keras
    does `<layer>/kernel` and `/bias` (`:0` at the end allowed), its kernels [H,W,I,O] or [I,O].

    Raises: WeightsError naming an array of another name, or a bias without its weight.
    """
    weights: dict[str, Array] = {}
    biases: dict[str, Array] = {}
    keras: set[str] = set()
    for key, array in arrays.items():
        path = key.removesuffix(":0")
        cut = max(path.rfind("/"), path.rfind("."))
        layer, kind = path[:cut], path[cut + 1 :]
        if not np.issubdtype(array.dtype, np.floating):
            raise WeightsError(f"{source}: {key!r} holds {array.dtype}, not floating-point numbers")
        if cut <= 0 or kind not in ("w", "weight", "kernel", "b", "bias"):
            raise WeightsError(
                f"{source}: cannot tell the layer of {key!r}: want <layer>/w and <layer>/b, "
                "<layer>.weight and <layer>.bias, or <layer>/kernel and <layer>/bias"
            )
        into = biases if kind in ("b", "bias") else weights
        if layer in into:
            raise WeightsError(f"{source}: layer {layer!r} has two arrays of the kind of {key!r}")
        into[layer] = array
        if kind == "kernel":
            keras.add(layer)
    if orphans := [layer for layer in biases if layer not in weights]:
        raise WeightsError(f"{source}: layer {orphans[0]!r} has a bias but no weight")
    layers = {
        name: _from_keras(name, weight, biases.get(name), source)
        if name in keras
        else Layer(weight, biases.get(name))
        for name, weight in weights.items()
    }
    return layers, "keras" if keras else "plain"


def _from_keras(name: str, kernel: Array, bias: Array | None, source: str) -> Layer:
    if kernel.ndim == 4:
        return Layer(kernel.transpose(3, 2, 0, 1), bias)
    if kernel.ndim == 2:
        return Layer(kernel.T, bias, "HWC")
    raise WeightsError(f"{source}: the kernel of {name!r} is {kernel.shape}: want 2 or 4 sides")
