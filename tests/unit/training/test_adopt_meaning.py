"""Networks whose activation other nodes follow are served as what they mean, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from model.export.adopt import PRESETS, AdoptError, AdoptOptions, AdoptReport
from tests.foreign_graphs import Graph
from tests.unit.training.test_adopt import class_list
from training.adopt import adopt_file

UNIT = PRESETS["unit"]
FLOAT = TensorProto.FLOAT
Tail = Callable[[Graph, str], str]


def f32(graph: Graph, *values: float) -> str:
    return graph.constant(values if len(values) > 1 else values[0], np.float32)


def enlarged(graph: Graph, value: str, mode: str = "linear") -> str:
    return graph.add("Resize", value, "", f32(graph, 1, 1, 2, 2), mode=mode)


def quantised(graph: Graph, value: str) -> str:
    step, zero = f32(graph, 1 / 255), graph.constant(0, np.uint8)
    inner = graph.add("QuantizeLinear", value, step, zero)
    return graph.add("DequantizeLinear", inner, step, zero)


def sigmoid(graph: Graph, value: str) -> str:
    return graph.add("Sigmoid", value)


def by_hand(graph: Graph, value: str) -> str:
    powers = graph.add("Exp", graph.add("Neg", value))
    return graph.add("Div", f32(graph, 1), graph.add("Add", powers, f32(graph, 1)))


# What may follow an activation.
FOLLOWERS: dict[str, Tail] = {
    "nothing": lambda g, v: v,
    "identity": lambda g, v: g.add("Identity", g.add("Identity", v)),
    "transpose": lambda g, v: g.add("Transpose", v, perm=[0, 2, 3, 1]),
    "resize": enlarged,
    "resize by cubes": lambda g, v: enlarged(g, v, "cubic"),
    "cast": lambda g, v: g.add("Cast", g.add("Cast", v, to=TensorProto.DOUBLE), to=FLOAT),
    "concat": lambda g, v: g.add("Concat", v, axis=1),
    "slice": lambda g, v: g.add(
        "Slice", v, g.constant([0]), g.constant([9]), g.constant([1]), g.constant([1])
    ),
    "clip": lambda g, v: g.add("Clip", v, f32(g, 0), f32(g, 1)),
    "clip inside": lambda g, v: g.add("Clip", v, f32(g, 1e-6), f32(g, 1 - 1e-6)),
    "quantised": quantised,
    "pool": lambda g, v: g.add("AveragePool", v, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "reshape": lambda g, v: g.add("Reshape", v, g.constant([0, 0, 0, -1])),
    "several": lambda g, v: enlarged(g, g.add("Clip", g.add("Cast", v, to=FLOAT), f32(g, 0), "")),
}
SQUEEZED: dict[str, Tail] = {
    "squeeze": lambda g, v: g.add("Squeeze", v, g.constant([1])),
    "gather": lambda g, v: g.add("Gather", v, g.constant(0), axis=1),
}


def network(path: Path, channels: int, tail: Tail, out: int = FLOAT, rank: int = 4) -> Path:
    graph = Graph()
    scores = graph.conv(graph.add("Relu", graph.conv("image", 3, 8)), 8, channels)
    # Around a middle that is not 0, so that no wrong threshold passes for the right one.
    shift = graph.constant(np.linspace(-0.6, 0.3, channels).reshape(1, -1, 1, 1), np.float32)
    return graph.write(path, {"out": (tail(graph, graph.add("Add", scores, shift)), out, rank)})


def adopted(folder: Path, path: Path, classes: int, **said: Any) -> AdoptReport:
    logits = said.pop("logits", False)
    options = AdoptOptions(UNIT, **said)
    return adopt_file(
        path, folder / "models", "net", class_list(folder, classes), options, logits=logits
    )


def both(path: Path, made: str) -> tuple[Any, Any, Any]:
    """The network's own output, and the labels and logits that are served."""
    image = np.random.default_rng(4).integers(0, 256, (1, 40, 56, 3), np.uint8)
    run = onnxruntime.InferenceSession(str(path)).run
    (raw,) = run(None, {"image": (image.transpose(0, 3, 1, 2) / 255).astype(np.float32)})
    served = onnxruntime.InferenceSession(made)
    return raw, *served.run(["label_map", "logits"], {"image": image})


def softmax(logits: Any) -> Any:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


ONE = {**FOLLOWERS, **SQUEEZED}


@pytest.mark.parametrize("follower", ONE)
def test_sigmoid(follower: str, tmp_path: Path) -> None:
    """A pixel is class 1 above 0.5, whatever follows the sigmoid."""
    rank = 3 if follower in SQUEEZED else 4
    path = network(tmp_path / "n.onnx", 1, lambda g, v: ONE[follower](g, sigmoid(g, v)), rank=rank)
    report = adopted(tmp_path, path, 2, logits=True)
    assert (report.meaning, report.threshold, report.warning) == ("probabilities", 0.5, None)
    raw, labels, logits = both(path, report.path)
    if not follower.startswith(("resize", "several")):
        raw = raw.reshape(labels.shape)
        np.testing.assert_array_equal(labels, raw > 0.5)
        np.testing.assert_allclose(softmax(logits)[:, 1], raw, atol=5e-3)


# Logits that are clipped to 0..1 are none any more.
@pytest.mark.parametrize("follower", [name for name in ONE if not name.startswith("clip")])
def test_one_logit(follower: str, tmp_path: Path) -> None:
    rank = 3 if follower in SQUEEZED else 4
    path = network(tmp_path / "n.onnx", 1, ONE[follower], rank=rank)
    if follower in ("several", "quantised"):  # from 0 upwards
        with pytest.raises(AdoptError, match=r"does output 'out' give logits or probabilities\?"):
            adopted(tmp_path, path, 2)
        return
    report = adopted(tmp_path, path, 2, logits=True)
    assert (report.meaning, report.threshold, report.warning) == ("logits", 0.0, None)
    raw, labels, logits = both(path, report.path)
    if not follower.startswith("resize"):
        raw = raw.reshape(labels.shape)
        np.testing.assert_array_equal(labels, raw > 0)
        np.testing.assert_allclose(softmax(logits)[:, 1], 1 / (1 + np.exp(-raw)), atol=1e-4)


_CUTTING = ("clip", "clip inside", "quantised", "several")  # most of what is not in 0..1
ENDS = [
    *(("Softmax", follower, 4) for follower in FOLLOWERS),
    *(("in the last axis", follower, 2) for follower in FOLLOWERS),
    # Beyond 0..1, as by cubes, neither graph nor values would show probabilities.
    *(("by hand", follower, 3) for follower in FOLLOWERS if follower != "resize by cubes"),
    *(("", follower, 2) for follower in FOLLOWERS if follower not in _CUTTING),
    *(("LogSoftmax", follower, 3) for follower in FOLLOWERS if follower not in _CUTTING),
]


@pytest.mark.parametrize(("end", "follower", "channels"), ENDS)
def test_several_classes(end: str, follower: str, channels: int, tmp_path: Path) -> None:
    """The softmax of what is served is the network's probabilities."""

    def tail(graph: Graph, value: str) -> str:
        if end == "by hand":
            powers = graph.add("Exp", value)
            total = graph.add("ReduceSum", powers, graph.constant([1]))
            value = graph.add("Div", powers, total)
        elif end == "in the last axis":
            value = graph.add("Transpose", value, perm=[0, 3, 2, 1])
            value = graph.add("Softmax", value, axis=3)
            value = graph.add("Transpose", value, perm=[0, 3, 2, 1])
        elif end:
            value = graph.add(end, value, axis=1)
        return FOLLOWERS[follower](graph, value)

    path = network(tmp_path / "n.onnx", channels, tail)
    report = adopted(tmp_path, path, channels, logits=True)
    assert report.meaning == ("logits" if end in ("", "LogSoftmax") else "probabilities")
    raw, labels, logits = both(path, report.path)
    if follower == "transpose":
        raw = raw.transpose(0, 3, 1, 2)
    if not follower.startswith(("resize", "several")):
        np.testing.assert_array_equal(labels, raw.argmax(axis=1))
        wanted = raw if report.meaning == "probabilities" else softmax(raw)
        np.testing.assert_allclose(softmax(logits), wanted, atol=5e-3)


def times_255(graph: Graph, value: str) -> str:
    return graph.add("Mul", sigmoid(graph, value), f32(graph, 255))


def as_bytes(graph: Graph, value: str) -> str:
    return graph.add("Cast", graph.add("Round", times_255(graph, value)), to=TensorProto.UINT8)


def mask(graph: Graph, value: str) -> str:
    above = graph.add("Greater", value, f32(graph, 0))
    return graph.add("Where", above, graph.constant(255, np.uint8), graph.constant(0, np.uint8))


def blurred(graph: Graph, value: str) -> str:
    kernel = graph.constant(np.outer([0.1, 0.8, 0.1], [0.1, 0.8, 0.1])[None, None], np.float32)
    return graph.add("Conv", sigmoid(graph, value), kernel, pads=[1, 1, 1, 1])


def first_of_two(graph: Graph, value: str) -> str:
    value = graph.add(
        "Softmax", graph.add("Concat", value, f32_plane(graph, value), axis=1), axis=1
    )
    return graph.add("Slice", value, *(graph.constant([n]) for n in (0, 1, 1)))


def f32_plane(graph: Graph, value: str) -> str:
    return graph.add("Mul", value, f32(graph, -0.5))


def averaged_labels(graph: Graph, value: str) -> str:
    labels = graph.add("Cast", graph.add("Greater", value, f32(graph, 0)), to=FLOAT)
    return enlarged(graph, labels)


def saturated(graph: Graph, value: str) -> str:
    """Adds what is 0 or 1 in a trial, and on other images anything between."""
    steep = graph.add("Mul", graph.add("Sub", value, f32(graph, -0.013)), f32(graph, 1e7))
    return by_hand(graph, graph.add("Clip", steep, f32(graph, -60), f32(graph, 60)))


QUESTION = r"does output 'out' give logits or probabilities\?.*--output-is.*--threshold"
UNCLEAR: dict[str, tuple[Tail, int, str]] = {
    "sigmoid by hand": (by_hand, FLOAT, QUESTION),
    "saturated": (saturated, FLOAT, QUESTION),
    "blurred probabilities": (blurred, FLOAT, QUESTION),
    "relu": (lambda g, v: g.add("Relu", v), FLOAT, QUESTION),
    "hard sigmoid by hand": (lambda g, v: g.add("Clip", v, f32(g, 0), f32(g, 1)), FLOAT, QUESTION),
    "divided by 0": (
        lambda g, v: g.add("Max", g.add("Div", sigmoid(g, v), f32(g, 0)), f32(g, 0)),
        FLOAT,
        "infinite or none",
    ),
    "cut at 0.4": (lambda g, v: g.add("Min", sigmoid(g, v), f32(g, 0.4)), FLOAT, QUESTION),
    "tanh": (lambda g, v: g.add("Tanh", v), FLOAT, QUESTION),
    "times 255": (times_255, FLOAT, QUESTION),
    "one minus": (lambda g, v: g.add("Sub", f32(g, 1), sigmoid(g, v)), FLOAT, QUESTION),
    "whole probabilities, unscaled": (
        lambda g, v: g.add("Cast", sigmoid(g, v), to=TensorProto.INT32),
        TensorProto.INT32,
        r"probabilities of Sigmoid in whole numbers",
    ),
    "bytes": (as_bytes, TensorProto.UINT8, r"answers classes 13 to .* the class list has 2"),
    "mask": (mask, TensorProto.UINT8, r"a mask of 0 and 255"),
    "averaged labels": (averaged_labels, FLOAT, r"made of labels, by the graph's Greater"),
    "whole probabilities": (
        lambda g, v: g.add("Cast", times_255(g, v), to=TensorProto.INT32),
        TensorProto.INT32,
        r"answers classes \d+ to .* the class list has 2",
    ),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_unclear_is_asked(case: str, tmp_path: Path) -> None:
    tail, out, message = UNCLEAR[case]
    path = network(tmp_path / "n.onnx", 1, tail, out)
    with pytest.raises(AdoptError, match=message):
        adopted(tmp_path, path, 2)
    assert not list(tmp_path.glob("models/**/*"))


@pytest.mark.parametrize(
    ("tail", "said", "above"),
    [
        (by_hand, {"output_is": "probabilities", "logits": True}, 0.5),
        (blurred, {"output_is": "probabilities"}, 0.5),
        (times_255, {"threshold": 127.5}, 127.5),
        (lambda g, v: g.add("Relu", v), {"threshold": 0.25}, 0.25),
        (lambda g, v: g.add("Tanh", v), {"output_is": "logits", "logits": True}, 0),
        (first_of_two, {}, 0.5),
        (lambda g, v: g.add("Sub", v, f32(g, 0.2)), {}, 0),
    ],
)
def test_stated(tail: Tail, said: dict[str, Any], above: float, tmp_path: Path) -> None:
    path = network(tmp_path / "n.onnx", 1, tail)
    report = adopted(tmp_path, path, 2, **{"logits": False, **said})
    assert report.threshold == above
    image = np.random.default_rng(4).integers(0, 256, (1, 40, 56, 3), np.uint8)
    values = (image.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    (raw,) = onnxruntime.InferenceSession(str(path)).run(None, {"image": values})
    (labels,) = onnxruntime.InferenceSession(report.path).run(["label_map"], {"image": image})
    np.testing.assert_array_equal(labels, raw[:, 0] > above)
    assert len(np.unique(labels)) == 2


def half(graph: Graph, value: str) -> str:
    return graph.add("Mul", graph.add("Softmax", value, axis=1), f32(graph, 0.5))


@pytest.mark.parametrize(
    ("channels", "tail", "said", "message"),
    [
        (1, sigmoid, {"output_is": "logits"}, r"is probabilities, by the graph's Sigmoid"),
        (1, lambda g, v: v, {"output_is": "probabilities"}, r"its values leave 0\.\.1"),
        (1, sigmoid, {"output_is": "labels"}, r"has fractions"),
        (1, sigmoid, {"threshold": 300.0}, r"threshold 300 is not in 0\.\.1"),
        (1, lambda g, v: v, {"threshold": float("nan")}, r"no finite number"),
        (1, by_hand, {"threshold": 0.5, "logits": True}, r"or leave --logits out"),
        (3, lambda g, v: v, {"output_is": "probabilities"}, r"its values leave 0\.\.1"),
        (3, sigmoid, {"output_is": "probabilities", "logits": True}, r"do not sum to 1"),
        (3, sigmoid, {"output_is": "logits", "logits": True}, r"is probabilities, by"),
        (3, sigmoid, {"logits": True}, r"do not sum to 1 .* leave --logits out"),
        (3, half, {"logits": True}, r"say --output-is logits or"),
        (3, lambda g, v: g.add("Relu", v), {"logits": True}, r"say --output-is logits or"),
    ],
)
def test_wrong_words(
    channels: int, tail: Tail, said: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = network(tmp_path / "n.onnx", channels, tail)
    with pytest.raises(AdoptError, match=message):
        adopted(tmp_path, path, max(2, channels), **said)


@pytest.mark.parametrize("tail", [sigmoid, half, lambda g, v: g.add("Relu", v)])
def test_labels_need_no_meaning(tail: Tail, tmp_path: Path) -> None:
    """The highest of several scores is the label, whatever they are."""
    path = network(tmp_path / "n.onnx", 3, tail)
    report = adopted(tmp_path, path, 3)
    assert report.label_agreement == 1 and report.warning is None


def test_independent_probabilities_may_be_called_so(tmp_path: Path) -> None:
    path = network(tmp_path / "n.onnx", 3, sigmoid)
    assert adopted(tmp_path, path, 3, output_is="probabilities").label_agreement == 1


@pytest.mark.parametrize(("channels", "perm"), [(1, (0, 1, 3, 2)), (3, (0, 3, 2, 1))])
def test_height_and_width_in_each_others_place(
    channels: int, perm: tuple[int, ...], tmp_path: Path
) -> None:
    """The reference would take them for another size, as the graph does, and agree."""
    path = network(tmp_path / "n.onnx", channels, lambda g, v: g.add("Transpose", v, perm=perm))
    with pytest.raises(AdoptError, match="height and width in each other's place"):
        adopted(tmp_path, path, max(2, channels))
