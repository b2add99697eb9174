"""A weights file of any format, told by its suffix."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from model.weights.caffe import caffe_layers
from model.weights.layers import Array, WeightsError, WeightsFile, pair_up

_MAX_BYTES = 2**31 - 1
"""The most that a protocol buffer may hold, and four times VGG16."""
_MAX_HEADER_BYTES = 100_000_000
"""Source: `MAX_HEADER_SIZE` of huggingface/safetensors (recalled)."""
_NO_HEADER = (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError)
_SAFETENSORS_TYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


def read_weights(path: Path) -> WeightsFile:
    """The layers of a .pth, .pt, .npz, .safetensors or .caffemodel.

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
    """The arrays of an .npz; pickles are refused. Raises: WeightsError, OSError."""
    try:
        # Opened here: given a path, numpy leaves a broken archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            size = sum(entry.file_size for entry in arrays.zip.infolist())
            if size > _MAX_BYTES:
                raise ValueError(f"unpacked it has {size} bytes, want at most {_MAX_BYTES}")
            read = dict(arrays)
    # numpy says by these: an archive cut short, a pickle, a single array, a shape beyond measure.
    except (BadZipFile, EOFError, ValueError, AttributeError, TypeError, MemoryError) as error:
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


def _torch(path: Path) -> WeightsFile:
    with path.open("rb") as file:
        return _state_dict(path, file)


def _state_dict(path: Path, file: IO[bytes]) -> WeightsFile:
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
    arrays: dict[str, Array] = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(f"{path} is not a state dict: {name!r} is no tensor")
        # numpy has no bfloat16.
        value = value.float() if value.dtype == torch.bfloat16 else value
        arrays[name] = value.detach().numpy()
    return pair_up(arrays, str(path), "torchvision")


def _safetensors(path: Path) -> WeightsFile:
    """A length of 8 bytes, a JSON header, the numbers.

    Source: https://github.com/huggingface/safetensors, "Format".
    """
    data = memoryview(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, _MAX_HEADER_BYTES):
        raise WeightsError(f"{path} is not a safetensors file, or cut short")
    try:
        header: dict[str, Any] = json.loads(bytes(data[8 : 8 + length]))
        header.pop("__metadata__", None)
        body = data[8 + length :]
        arrays = {name: _tensor(entry, body) for name, entry in header.items()}
    # Text that is no JSON, or not of these keys, or a shape that does not fit its bytes.
    except _NO_HEADER as error:
        raise WeightsError(f"{path} is not a safetensors file, or cut short: {error}") from error
    return pair_up(arrays, str(path), "torchvision")


def _tensor(entry: dict[str, Any], body: memoryview) -> Array:
    start, end = entry["data_offsets"]
    if not 0 <= start <= end <= len(body):
        raise ValueError(f"bytes {start} to {end} of {len(body)}")
    return np.frombuffer(body[start:end], _SAFETENSORS_TYPES[entry["dtype"]]).reshape(
        entry["shape"]
    )


_READERS: dict[str, Callable[[Path], WeightsFile]] = {
    ".pth": _torch,
    ".pt": _torch,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".caffemodel": _caffe,
}
