"""Start weights: a backbone's layers in its own shapes, as `fcn import-weights` writes them.

An .npz with `<layer>/w` [O,I,H,W] and `<layer>/b` [O], float32, and the strings `network` and
`normalisation`: weights used with other pixels than they were learned from fail silently.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from model.weights.layers import Array, LayerWeights, WeightsError, pair_up
from model.weights.read import read_npz

_STRINGS = ("network", "normalisation")


def write_start_weights(
    path: Path, layers: LayerWeights, *, network: str, normalisation: str
) -> None:
    """Written beside and renamed into place."""
    arrays: dict[str, Array] = {"network": np.array(network)}
    arrays["normalisation"] = np.array(normalisation)
    for name, layer in layers.items():
        arrays[f"{name}/w"] = layer.weight
        if layer.bias is not None:
            arrays[f"{name}/b"] = layer.bias
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    os.replace(temporary, path)


def read_start_weights(path: Path, *, network: str, normalisation: str) -> LayerWeights:
    """Raises: WeightsError if it is no such file, or for another network or other pixels;
    OSError."""
    arrays = read_npz(path)
    said = {name: str(arrays.pop(name, "")) for name in _STRINGS}
    if not all(said.values()):
        raise WeightsError(f"{path} is not a file of start weights: make one, fcn import-weights")
    if said["network"] != network:
        raise WeightsError(f"{path} is for {said['network']}, not {network}")
    if said["normalisation"] != normalisation:
        raise WeightsError(
            f"{path} has weights for {said['normalisation']} pixels: set network.normalisation="
            f"{said['normalisation']}"
        )
    return pair_up(arrays, str(path)).layers
