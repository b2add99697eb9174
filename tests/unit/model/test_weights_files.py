"""State dicts, .npz and safetensors: what they hold, and what is refused."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.build import BACKBONES
from model.weights import read
from model.weights.layers import Layer, WeightsError
from model.weights.names import IMPLIED
from model.weights.read import read_weights
from model.weights.start import read_start_weights, write_start_weights
from tests.vgg_classifier import (
    LAYERS,
    Classifier,
    caffe_arrays,
    write_keras_npz,
    write_plain_npz,
    write_pth,
)


def safetensors(path: Path, arrays: dict[str, np.ndarray], **changes: Any) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, array in arrays.items():
        end = len(body) + array.nbytes
        kind = f"F{8 * array.itemsize}"
        entry = {"dtype": kind, "shape": array.shape, "data_offsets": [len(body), end]}
        header[name] = entry | changes
        body += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def write_safetensors(path: Path, classifier: Classifier) -> None:
    safetensors(path, {name: value.numpy() for name, value in classifier.state_dict().items()})


@pytest.mark.parametrize(
    ("name", "write", "convention"),
    [
        ("vgg16.pth", write_pth, "torchvision"),
        ("vgg16.safetensors", write_safetensors, "torchvision"),
        ("vgg16.npz", write_plain_npz, "plain"),
        ("vgg16.npz", write_keras_npz, "keras"),
    ],
)
def test_every_layer_of_a_vgg16_gets_its_caffe_name(
    name: str, write: Callable[[Path, Classifier], None], convention: str, tmp_path: Path
) -> None:
    classifier = Classifier()
    write(tmp_path / name, classifier)
    file = read_weights(tmp_path / name)
    assert file.convention == convention
    layers = BACKBONES["vgg16"].names.renamed(file.layers, file.convention)
    assert set(layers) == {*LAYERS, "fc6", "fc7", "fc8"}
    for layer, (weight, bias) in caffe_arrays(classifier).items():
        got = layers[layer]
        assert got.weight.shape == weight.shape and got.bias is not None
        assert np.array_equal(got.bias, bias)
        if convention != "keras" or layer != "fc6":
            assert np.array_equal(got.weight, weight)


def test_a_caffe_or_keras_file_is_of_caffe_pixels() -> None:
    assert IMPLIED == {"caffe": "caffe", "keras": "caffe", "torchvision": "torchvision"}


def test_half_precision_is_read(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.full((1, 2), 1.5, dtype=torch.bfloat16)}, tmp_path / "a.pt")
    assert read_weights(tmp_path / "a.pt").layers["a"].weight.tolist() == [[1.5, 1.5]]
    safetensors(tmp_path / "a.safetensors", {"a.weight": np.full((1, 2), 1.5, np.float16)})
    assert read_weights(tmp_path / "a.safetensors").layers["a"].weight.tolist() == [[1.5, 1.5]]


class Code:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["code.pth", "code.pt", "code.npz"])
@pytest.mark.parametrize("by_torch", [True, False])
def test_code_in_a_file_is_not_run(name: str, by_torch: bool, tmp_path: Path) -> None:
    path, trace = tmp_path / name, tmp_path / "trace"
    if by_torch:
        torch.save({"a.weight": Code(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"a.weight": Code(trace)}))
    with pytest.raises(WeightsError, match=path.name):
        read_weights(path)
    assert not trace.exists()


@pytest.mark.parametrize("value", [[1], {}, {"a.weight": 3}, {1: torch.zeros(1)}, torch.zeros(2)])
def test_a_pth_that_is_no_state_dict(value: Any, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="is not a state dict"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("suffix", ["pth", "npz", "safetensors"])
def test_a_file_cut_short(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    {"pth": write_pth, "npz": write_plain_npz, "safetensors": write_safetensors}[suffix](
        path, Classifier()
    )
    whole = path.read_bytes()
    for end in (0, 5, 300, len(whole) - 100):
        path.write_bytes(whole[:end])
        with pytest.raises(WeightsError, match=rf"a\.{suffix} is not a"):
            read_weights(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": 1}, "cannot tell the layer of 'a'"),
        ({"a/factor": 1}, "cannot tell the layer of 'a/factor'"),
        ({"a/gamma": 1}, "the norm 'a' has no running mean and variance"),
        ({"a/depthwise_kernel": 1}, "the depthwise kernel of 'a'"),
        ({"a/kernel": 1, "a/depthwise_kernel": 1}, "'a' has two arrays"),
        ({"/w": 1}, "cannot tell the layer of '/w'"),
        ({"a/b": 1}, "'a' has a bias but no weight"),
        ({"a/w": 1, "a.weight": 1}, "'a' has two arrays"),
        ({"a/kernel": 1}, "kernel of 'a'"),
    ],
)
def test_arrays_of_no_layer(arrays: dict[str, int], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{name: np.zeros(3) for name in arrays})  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=message):
        read_weights(tmp_path / "a.npz")


def test_weights_are_floating_point(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.zeros(2, dtype=torch.int64)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"'a\.weight' holds int64"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [7]},
        {"shape": [2**70]},
        {"data_offsets": [0, 99]},
        {"data_offsets": [-8, 8]},
        {"data_offsets": [4, 0]},
        {"data_offsets": 3},
        {"dtype": "I64"},
    ],
)
def test_a_safetensors_header_that_lies(changes: dict[str, Any], tmp_path: Path) -> None:
    safetensors(tmp_path / "a.safetensors", {"a.weight": np.zeros(2, np.float32)}, **changes)
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        read_weights(tmp_path / "a.safetensors")


def test_an_unknown_suffix_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"unknown kind.*\.caffemodel"):
        read_weights(tmp_path / "a.h5")
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "a.pth")


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "_MAX_BYTES", 10)
    (tmp_path / "a.pth").write_bytes(bytes(11))
    with pytest.raises(WeightsError, match="has 11 bytes: want at most 10"):
        read_weights(tmp_path / "a.pth")


def test_an_npz_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **{"a/w": np.zeros(100_000)})  # type: ignore[arg-type]
    monkeypatch.setattr(read, "_MAX_BYTES", 10_000)
    assert path.stat().st_size < 10_000
    with pytest.raises(WeightsError, match=r"unpacked it has \d+ bytes, want at most 10000"):
        read_weights(path)


def test_an_npy_header_that_lies_and_an_array_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with path.open("wb") as alone:
        np.save(alone, np.zeros(3))
    with pytest.raises(WeightsError, match=r"a\.npz is not an \.npz of arrays"):
        read_weights(path)
    with zipfile.ZipFile(path, "w") as archive, archive.open("a/w.npy", "w") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (2**50,)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(WeightsError, match=r"a\.npz is not an \.npz of arrays"):
        read_weights(path)


def test_start_weights_remember_what_they_are_for(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "start.npz"
    layer = Layer(np.ones((2, 1, 1, 1), np.float32), np.ones(2, np.float32))
    write_start_weights(path, {"fc6": layer}, network="vgg16", preprocessing="caffe")
    back = read_start_weights(path, network="vgg16", preprocessing="caffe")
    assert np.array_equal(back["fc6"].weight, layer.weight)
    assert [entry.name for entry in path.parent.iterdir()] == ["start.npz"]
    with pytest.raises(WeightsError, match="is for vgg16, not alexnet"):
        read_start_weights(path, network="alexnet", preprocessing="caffe")
    with pytest.raises(
        WeightsError, match=r"caffe preprocessing: set network\.preprocessing=caffe"
    ):
        read_start_weights(path, network="vgg16", preprocessing="torchvision")


def test_other_npz_files_are_no_start_weights(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{"a/w": np.zeros(1)})  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="fcn import-weights"):
        read_start_weights(tmp_path / "a.npz", network="vgg16", preprocessing="caffe")


@pytest.mark.parametrize(("at", "value"), [(8, 99), (45, 255)])
def test_an_npz_with_a_damaged_directory_is_refused(at: int, value: int, tmp_path: Path) -> None:
    """Where zipfile raises NotImplementedError and OSError."""
    path = tmp_path / "a.npz"
    np.savez(path, conv=np.ones((1, 3), np.float32))
    body = bytearray(path.read_bytes())
    body[body.index(b"PK\x01\x02") + at] = value
    path.write_bytes(body)
    with pytest.raises(WeightsError, match=r"is not an \.npz"):
        read_weights(path)
