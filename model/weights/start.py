"""Start weights: a backbone's layers in its own shapes, as `fcn import-weights` writes them.

An .npz with `<layer>/w` [O,I,H,W] and `<layer>/b` [O], float32, batch norms folded in, and the
strings `network` and `preprocessing`: weights that are fed otherwise than they were learned fail
silently.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from model.weights.layers import Array, LayerWeights, WeightsError, pair_up
from model.weights.names import from_tflite, is_tflite
from model.weights.read import read_npz


def write_start_weights(
    path: Path, layers: LayerWeights, *, network: str, preprocessing: str
) -> None:
    """Writes a file of start weights beside `path` and renames it."""
    arrays: dict[str, Array] = {"network": np.array(network)}
    arrays["preprocessing"] = np.array(preprocessing)
    for name, layer in layers.items():
        arrays[f"{name}/w"] = layer.weight
        if layer.bias is not None:
            arrays[f"{name}/b"] = layer.bias
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    os.replace(temporary, path)


def read_start_weights(
    path: Path, *, network: str, preprocessing: str, depthwise: frozenset[str] = frozenset()
) -> LayerWeights:
    """Read a file of start weights, or one in TensorFlow Lite's layout, told by its `depthwise`
    layers, as those of MobileNetV1 were before.

    Raises: WeightsError if it is no such file, or for another network or preprocessing; OSError.
    """
    arrays = read_npz(path)
    said = str(arrays.pop("network", ""))
    before = arrays.pop("normalisation", "")  # its name in files of earlier versions
    fed = str(arrays.pop("preprocessing", before))
    if depthwise:
        layers = pair_up(arrays, str(path)).layers
        if is_tflite(layers, depthwise):
            return from_tflite(layers, depthwise)
    if not said or not fed:
        raise WeightsError(f"{path} is not a file of start weights: make one, fcn import-weights")
    if said != network:
        raise WeightsError(f"{path} is for {said}, not {network}")
    if fed != preprocessing:
        raise WeightsError(
            f"{path} has weights for {fed} preprocessing: set network.preprocessing={fed}"
        )
    return pair_up(arrays, str(path)).layers
