"""A weights file of any format, told by its suffix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from model.weights.caffe import caffe_layers
from model.weights.layers import Array, WeightsError, WeightsFile, pair_up

_MAX_BYTES = 2**31 - 1
"""The most that a protocol buffer may hold, and four times VGG16."""


def read_weights(path: Path) -> WeightsFile:
    """Reads the layers of a .pth, .pt, .npz, .safetensors or .caffemodel.

    Raises: WeightsError naming the file; FileNotFoundError or another OSError.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise WeightsError(
            f"{path}: unknown kind of weights file: want one of {', '.join(_READERS)}"
        )
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise WeightsError(f"{path} has {size} bytes: want at most {_MAX_BYTES}")
    return reader(path)


def read_npz(path: Path) -> dict[str, Array]:
    """Reads the arrays of an .npz; pickles are refused. Raises: WeightsError, OSError."""
    with path.open("rb") as file:  # given a path, numpy leaves a broken archive open
        try:
            with np.load(file, allow_pickle=False) as arrays:
                size = sum(entry.file_size for entry in arrays.zip.infolist())
                if size > _MAX_BYTES:
                    raise ValueError(f"unpacked it has {size} bytes, want at most {_MAX_BYTES}")
                read = dict(arrays)
        # numpy and zipfile name no set of errors for a damaged file.
        except Exception as error:
            raise WeightsError(f"{path} is not an .npz of arrays: {error}") from error
    # Of an archive's other files numpy gives the bytes.
    if others := [name for name, array in read.items() if not isinstance(array, np.ndarray)]:
        raise WeightsError(f"{path} is not an .npz of arrays: it holds a file {others[0]!r}")
    return read


def _npz(path: Path) -> WeightsFile:
    return pair_up(read_npz(path), str(path))


def _caffe(path: Path) -> WeightsFile:
    try:
        return WeightsFile(caffe_layers(path.read_bytes()), "caffe")
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def _state_dict(path: Path) -> WeightsFile:
    with path.open("rb") as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            # torch.load raises whatever the broken archive brings up, and its text on a file with
            # code in it explains how to run that code.
            raise WeightsError(
                f"{path} is not a state dict of plain tensors (damaged, or it holds code, which is "
                "never run)"
            ) from error
    if not isinstance(state, dict) or not state:
        raise WeightsError(f"{path} is not a state dict: want a mapping from names to tensors")
    return _of_tensors(path, state)


def _of_tensors(path: Path, state: dict[Any, Any]) -> WeightsFile:
    arrays: dict[str, Array] = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(f"{path} is not a state dict: {name!r} is no tensor")
        # numpy has no bfloat16.
        value = value.float() if value.dtype == torch.bfloat16 else value
        arrays[name] = value.detach().numpy()
    return pair_up(arrays, str(path), "torchvision")


def _safetensors(path: Path) -> WeightsFile:
    try:
        tensors = load(path.read_bytes())
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{path} is not a safetensors file, or cut short: {error}") from error
    return _of_tensors(path, dict(sorted(tensors.items())))  # they come in any order


_READERS: dict[str, Callable[[Path], WeightsFile]] = {
    ".pth": _state_dict,
    ".pt": _state_dict,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".caffemodel": _caffe,
}
