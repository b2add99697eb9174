"""Fuzzes files: contracts, weights and label maps of others, and the operator's own."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import scipy.io
import torch
from safetensors.numpy import save

from model.contract import Contract, ContractError
from model.weights.caffe import caffe_layers
from model.weights.layers import WeightsError
from model.weights.read import read_weights
from service.api.keys import line_of, parse
from service.core.models.model_settings import (
    ALIASES_FILE,
    SETTINGS_FILE,
    read_aliases,
    read_settings,
)
from service.errors import ModelLoadError, StartError
from service.settings import SettingsError, load_settings
from tests import caffemodel
from tests.fuzz.target import Target
from tests.tiny_models import contract
from training.datasets.base import DatasetError
from training.datasets.labels import read_matrix


@cache
def _folder() -> Path:
    held = tempfile.TemporaryDirectory(prefix="fuzz-")
    _kept.append(held)
    return Path(held.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


def _at(name: str, read: Callable[[Path], str]) -> Callable[[bytes], str]:
    """Makes a check of bytes out of one of a file."""

    def check(data: bytes) -> str:
        path = _folder() / name
        path.write_bytes(data)
        return read(path)

    return check


def _contracts() -> list[bytes]:
    plain = contract("tiny", logits=True)
    scored = replace(plain, scores={"mean_iu": 0.5, "pixel_accuracy": 1}, precision="int8")
    sized = replace(plain, input=replace(plain.input, sizes="sizes"), format_version=2)
    return [one.to_json().encode() for one in (plain, scored, sized)]


def _contract(data: bytes) -> str:
    found = Contract.from_json(data.decode("utf-8", "surrogateescape"))
    assert Contract.from_json(found.to_json()) == found
    assert found.palette().shape == (256, 3) and found.background in (None, *range(256))
    for info in found.classes:
        assert found.class_id(info.name) is not None
    orjson.dumps(found.to_dict())  # as replies quote it
    return "read"


def _caffemodels() -> list[bytes]:
    blobs = [np.ones((2, 3, 1, 1), np.float32), np.zeros(2, np.float32)]
    layers: dict[str, caffemodel.Blobs] = {"conv1": blobs, "relu": []}
    return [
        caffemodel.net(layers),
        caffemodel.net(layers, "layers"),
        caffemodel.net(layers, double=True, packed=False),
    ]


def _caffe(data: bytes) -> str:
    for layer in caffe_layers(data).values():
        assert layer.weight.dtype.kind == "f"
    return "read"


_STATE = {
    "conv1.weight": np.ones((2, 3, 1, 1), np.float32),
    "conv1.bias": np.zeros(2, np.float32),
}


def _npz() -> list[bytes]:
    made = []
    for write in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        write(buffer, **_STATE)  # type: ignore[arg-type]
        made.append(buffer.getvalue())
    return made


def _pth() -> list[bytes]:
    buffer = io.BytesIO()
    torch.save({name: torch.from_numpy(array) for name, array in _STATE.items()}, buffer)
    return [buffer.getvalue()]


def _safetensors() -> list[bytes]:
    return [save(_STATE)]


def _weights(path: Path) -> str:
    found = read_weights(path)
    for layer in found.layers.values():
        assert layer.weight.size >= 0
    return "read"


def _mats() -> list[bytes]:
    made = []
    for compressed in (False, True):
        buffer = io.BytesIO()
        matrix = np.arange(12, dtype=np.uint8).reshape(3, 4)
        scipy.io.savemat(buffer, {"S": matrix, "other": {"a": 1.5}}, do_compression=compressed)  # type: ignore[arg-type]
        made.append(buffer.getvalue())
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"S": np.ones((2, 2))}, format="4")  # type: ignore[arg-type]
    return [*made, buffer.getvalue()]


def _mat(path: Path) -> str:
    matrix = read_matrix(path, "S")
    assert matrix.ndim == 2 and matrix.dtype.kind in "iu"
    return "read"


def _settings_files() -> list[bytes]:
    return [
        b'FCN_HTTP_PORT=8000\nFCN_GRPC_PORT="8001"\n# a comment\nFCN_LIMITS=requests_s=10\n',
        b"FCN_WARM_UP_SIZES='360x480,480x640'\nexport FCN_MAX_QUEUE=20\nFCN_DRAIN_S=1.5\n",
        b'FCN_PROVIDER_OPTIONS={"cuda": {"use_tf32": 0}}\nFCN_HOST=${HOST:-::1}\n',
    ]


def _settings(path: Path) -> str:
    assert not [name for name in os.environ if name.startswith("FCN_")]
    settings = load_settings({"settings_file": path})
    settings.segmenter_config()
    settings.api_config()
    return "read"


def _keys_files() -> list[bytes]:
    return [
        b"# ours\nann 0123456789abcdef role=predict,admin requests_s=10\n\nbob 0123456789abcdeg\n",
        b"cam sha256:%b in_flight=4 megapixels_s=2.5 created=2026-11-30\n" % (b"ab" * 32),
    ]


def _keys(data: bytes) -> str:
    callers = parse(data.decode("utf-8-sig", "replace"), "the-key-of-the-operator")
    again: Any = parse("\n".join(map(line_of, callers)))
    assert [replace(caller, plain=False) for caller in callers] == list(again)
    return "read" if callers else "empty"


def _model_settings(path: Path) -> str:
    found = read_settings(path.parent)
    assert found.candidates(["1", "2", "10"])
    return "read"


def _aliases(path: Path) -> str:
    return "read" if read_aliases(path.parent) else "empty"


_MODEL_SETTINGS = (
    b'versions = {latest = 2}\ndefault_version = 3\nmax_batch = 4\nwarm_up_sizes = ["360x480"]\n',
    b"versions = [1, 3]\n",
)
_ALIASES = (b'street = "camvid-fcn8s"\nstable = "camvid-fcn8s/1"\n',)

_WEIGHTS = (WeightsError,)
_READ_OR_NOT = frozenset({"read", "WeightsError"})

FILES = (
    Target("contract", _contracts, _contract, (ContractError,), frozenset({"read"})),
    Target("caffemodel", _caffemodels, _caffe, _WEIGHTS, _READ_OR_NOT),
    Target("npz", _npz, _at("a.npz", _weights), _WEIGHTS, _READ_OR_NOT),
    Target("pth", _pth, _at("a.pth", _weights), _WEIGHTS, _READ_OR_NOT),
    Target("safetensors", _safetensors, _at("a.safetensors", _weights), _WEIGHTS, _READ_OR_NOT),
    Target("mat", _mats, _at("a.mat", _mat), (DatasetError,), may_crash=True),  # by SciPy
    Target("settings", _settings_files, _at("a.env", _settings), (SettingsError,)),
    Target("keys", _keys_files, _keys, (StartError,), frozenset({"read", "StartError"})),
    Target(
        SETTINGS_FILE,
        lambda: _MODEL_SETTINGS,
        _at(SETTINGS_FILE, _model_settings),
        (ModelLoadError,),
        frozenset({"read", "ModelLoadError"}),
    ),
    Target(
        ALIASES_FILE,
        lambda: _ALIASES,
        _at(ALIASES_FILE, _aliases),
        (ModelLoadError,),
        frozenset({"read", "ModelLoadError"}),
    ),
)
