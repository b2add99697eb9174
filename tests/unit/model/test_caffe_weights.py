"""`.caffemodel` files, from bytes that the test writes itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.weights.caffe import caffe_layers
from model.weights.layers import WeightsError
from model.weights.read import read_weights
from tests import caffemodel
from tests.caffemodel import Format

RNG = np.random.default_rng(0)
CONV = [RNG.normal(size=(4, 3, 2, 2)).astype(np.float32), RNG.normal(size=4).astype(np.float32)]
FC = [RNG.normal(size=(5, 16)).astype(np.float32), RNG.normal(size=5).astype(np.float32)]
NET: dict[str, caffemodel.Blobs] = {
    "conv": CONV,
    "relu": [],
    "fc": FC,
    "up": [RNG.normal(size=(2, 2, 4, 4))],
}


@pytest.mark.parametrize("form", ["layer", "layers"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_layers_come_back_as_they_were(form: Format, double: bool, packed: bool) -> None:
    layers = caffe_layers(caffemodel.net(NET, form, double=double, packed=packed))
    assert list(layers) == ["conv", "fc", "up"]
    for name, layer in layers.items():
        weight, *bias = NET[name]
        assert layer.weight.dtype == (np.float64 if double else np.float32)
        assert np.array_equal(layer.weight.squeeze(), weight.astype(layer.weight.dtype).squeeze())
        if not bias:
            assert layer.bias is None
            continue
        assert layer.bias is not None
        assert np.array_equal(layer.bias.ravel(), bias[0])
    wanted = (5, 16) if form == "layer" else (1, 1, 5, 16)
    assert layers["fc"].weight.shape == wanted


def test_bytes_known_by_heart() -> None:
    """One layer `a` with one value, 1.0, of shape 1: the writer and the reader could agree on
    something else."""
    blob = bytes([0x2A, 4, 0, 0, 0x80, 0x3F, 0x3A, 3, 0x0A, 1, 1])
    layer = bytes([0x0A, 1, ord("a"), 0x3A, len(blob)]) + blob
    net = bytes([0xA2, 0x06, len(layer)]) + layer
    assert caffemodel.net({"a": [np.ones(1)]}).endswith(blob + caffemodel.message(106, b"\x08\x40"))
    assert caffe_layers(net)["a"].weight.tolist() == [1.0]


def test_data_may_be_split_into_packed_and_unpacked_parts() -> None:
    values = np.arange(11, dtype=np.float32)
    parts = (
        caffemodel.data(values[:2])
        + caffemodel.data(values[2:9], packed=False)
        + caffemodel.data(values[9:])
    )
    message = caffemodel.message(7, caffemodel.shape((11,)) + parts)
    net = caffemodel.message(100, caffemodel.message(1, b"a") + message)
    assert caffe_layers(net)["a"].weight.tolist() == values.tolist()


@pytest.mark.parametrize("form", ["layer", "layers"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_cut_is_an_error_or_leaves_whole_layers(form: Format, packed: bool) -> None:
    whole = caffemodel.net({"a": [np.ones((2, 2))], "b": [np.ones(3)]}, form, packed=packed)
    for end in range(len(whole)):
        try:
            layers = caffe_layers(whole[:end])
        except WeightsError:
            continue
        assert list(layers) == ["a"] and layers["a"].weight.size == 4


def test_hostile_bytes_raise_nothing_else() -> None:
    whole = bytearray(caffemodel.net({"a": [np.ones((2, 2))], "b": [np.ones(3)]}))
    rng = np.random.default_rng(1)
    for _ in range(2000):
        changed = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            changed[at] = rng.integers(0, 256)
        try:
            caffe_layers(bytes(changed))
        except WeightsError:
            continue


def _one(blob: bytes, name: bytes = b"a") -> bytes:
    return caffemodel.message(100, caffemodel.message(1, name) + caffemodel.message(7, blob))


_ONE = caffemodel.data(np.ones(1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no layer has weights"),
        (b"name: 'a net in text'", "not a .caffemodel"),
        (caffemodel.net({"relu": []}), "no layer has weights"),
        (caffemodel.net({"a": CONV})[:-40], "cut short"),
        *(
            (damaged, "not a .caffemodel, or cut short")
            for damaged in (
                b"\xff" * 11,
                b"\x80",
                b"\x00\x00",
                b"\x0b",
            )
        ),
        (caffemodel.number(100, 3), "no layer has weights"),
        (caffemodel.net({"a": [*CONV, *CONV]}), "'a' has 4 blobs"),
        (caffemodel.net({"a": CONV}) * 2, "two layers are called 'a'"),
        (_one(caffemodel.shape((1,)) + _ONE, b""), "has no name"),
        (_one(caffemodel.shape((1,)) + _ONE, b"\xff"), "not UTF-8"),
        (_one(caffemodel.shape((2, 3)) + _ONE), r"'a': a blob of shape \[2, 3\] has 1 values"),
        # 2**32 * 2**32 is 0 in 64 bits, and 2**64 - 1 is -1.
        (_one(caffemodel.shape((2**32, 2**32)) + _ONE), "has 1 values"),
        (_one(caffemodel.shape((2**64 - 1,)) + _ONE), "has 1 values"),
        (_one(caffemodel.shape((1,) * 33) + _ONE), "more than 32 sides"),
        (_one(caffemodel.shape((1,))), "no data"),
        (_one(caffemodel.shape((0,)) + caffemodel.message(5, b"")), "no data"),
        (_one(caffemodel.shape((2**64 - 1, 2**64 - 1)) + _ONE), "has 1 values"),
        (_one(caffemodel.message(5, b"abc")), "not a .caffemodel"),
        (_one(caffemodel.number(5, 1)), "no data"),
        (_one(_ONE + caffemodel.data(np.ones(1), double=True)), "both single and double"),
        (caffemodel.message(2, caffemodel.message(1, b"")), "V0"),
    ],
)
def test_what_is_no_caffemodel(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.caffemodel"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as raised:
        read_weights(path)
    assert str(raised.value).startswith(str(path))


def test_the_number_of_layers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.weights.caffe._MAX_LAYERS", 1)
    with pytest.raises(WeightsError, match="more than 1 layers"):
        caffe_layers(caffemodel.net({"a": CONV, "b": CONV}))
