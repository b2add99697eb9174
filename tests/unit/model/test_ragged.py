"""Which layers see zeros beyond an image, which are left alone, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from model.contract import METADATA_KEY, Contract
from model.ragged import NotRagged, ragged
from model.ragged.rewrite import SIZES
from model.ragged.walk import Grid, grid_of, pictures
from tests.unit.model.ragged_graphs import Array, Pair, contract, graph, node

SIZES_PX = [(7, 9), (12, 3), (1, 1), (4, 12)]
EXACT = 1e-6
"""Of float32 sums of a few numbers, which may be added in another order."""


def weights(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def conv(into: str = "y", of: str = "x", kernel: int = 3, **given: Any) -> onnx.NodeProto:
    given = {"pads": [kernel // 2] * 4, **given}
    return node("Conv", [of, "w", "b"], into, kernel_shape=[kernel] * 2, **given)


def pool(kind: str = "MaxPool", of: str = "x", into: str = "y", **given: Any) -> onnx.NodeProto:
    given = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1] * 4, **given}
    return node(kind, [of], into, **given)


MINUS = node("Sub", ["x", "half"], "low")
HALF = {"half": np.array(0.5, np.float32)}
W3 = {"w": weights(3, 3, 3, 3), "b": weights(3)}
W1 = {"w": weights(3, 3, 1, 1), "b": weights(3)}

EXACT_GRAPHS: dict[str, tuple[list[onnx.NodeProto], dict[str, Array], list[str]]] = {
    "zeros are there already": ([conv()], W3, []),
    "not after a subtraction": ([MINUS, conv(of="low")], HALF | W3, ["low"]),
    "one place at a time sees nothing": ([MINUS, conv(of="low", kernel=1)], HALF | W1, []),
    "each of two windows": ([conv("a"), conv(of="a")], W3, ["a"]),
    "once for two that look at it": (
        [conv("a"), conv("c", "a"), conv("d", "a"), node("Add", ["c", "d"], "y")],
        W3,
        ["a"],
    ),
    "windows that look back only": ([MINUS, conv(of="low", pads=[2, 2, 0, 0])], HALF | W3, []),
    "far apart": ([MINUS, conv(of="low", dilations=[2, 2], pads=[2] * 4)], HALF | W3, ["low"]),
    "zeros are least where nothing is below": ([pool()], {}, []),
    "a max below zero": ([MINUS, pool(of="low")], HALF, ["low"]),
    "a max of what was cut at zero": (
        [MINUS, node("Relu", ["low"], "up"), pool(of="up")],
        HALF,
        ["up"],
    ),
    "a mean of windows of equal size": (
        [MINUS, pool("AveragePool", "low", count_include_pad=1)],
        HALF,
        ["low"],
    ),
    "clipped to what holds zero": (
        [node("Clip", ["x", "", "half"], "up"), conv(of="up")],
        HALF | W3,
        [],
    ),
    "clipped above zero": (
        [node("Clip", ["x", "half"], "up"), conv(of="up")],
        HALF | W3,
        ["up"],
    ),
    "padded first": (
        [
            MINUS,
            node("Pad", ["low", "pads"], "wide"),
            conv(of="wide", pads=[0] * 4),
        ],
        HALF | W3 | {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1)},
        ["low"],
    ),
    "side by side in channels": (
        [
            MINUS,
            node("Concat", ["x", "low"], "both", axis=1),
            node("Conv", ["both", "w"], "y", kernel_shape=[3, 3], pads=[1] * 4),
        ],
        HALF | {"w": weights(3, 6, 3, 3)},
        ["both"],
    ),
    "colours in another order": (
        [node("Gather", ["x", "order"], "bgr", axis=1), conv(of="bgr")],
        W3 | {"order": ints(2, 1, 0)},
        [],
    ),
}


@pytest.mark.parametrize("name", EXACT_GRAPHS)
def test_cleared_where_it_matters_and_nowhere_else(name: str) -> None:
    nodes, constants, masked = EXACT_GRAPHS[name]
    pair = Pair(graph(nodes, constants), contract())
    assert pair.masked == masked
    assert max(pair.differences(SIZES_PX)) <= EXACT


def test_the_input_and_the_contract() -> None:
    proto = graph([MINUS, conv(of="low")], HALF | W3)
    before = proto.SerializeToString()
    changed, new = ragged(proto, contract())
    assert proto.SerializeToString() == before, "a copy"
    assert (new.input.sizes, new.format_version) == (SIZES, 2)
    assert Contract.from_metadata({p.key: p.value for p in changed.metadata_props}, "it") == new
    given = changed.graph.input[-1]
    assert (given.name, given.type.tensor_type.elem_type) == (SIZES, TensorProto.INT64)
    with pytest.raises(NotRagged, match="net is ragged already"):
        ragged(changed, new)


def test_other_metadata_stays() -> None:
    proto = graph([conv()], W3)
    onnx.helper.set_model_props(proto, {"author": "somebody", METADATA_KEY: "old"})
    changed, new = ragged(proto, contract())
    found = {p.key: p.value for p in changed.metadata_props}
    assert found == {"author": "somebody", METADATA_KEY: new.to_json()}


def test_one_mask_for_each_stride() -> None:
    """However many layers look at maps of it."""
    nodes = [
        MINUS,
        conv("a", "low"),
        conv("c", "a"),
        conv("d", "c", strides=[2, 2]),
        conv("e", "d"),
        node("ConvTranspose", ["e", "up"], "f", strides=[2, 2], kernel_shape=[4, 4], group=3),
        *crop("f", "y", start=1),
    ]
    pair = Pair(graph(nodes, HALF | W3 | CROP | {"up": weights(3, 1, 4, 4)}), contract())
    assert pair.masked == ["low", "a", "c", "d", "e"]
    assert sum(n.op_type == "And" for n in pair.proto.graph.node) == 2
    assert max(pair.differences(SIZES_PX)) <= EXACT


def test_half_floats_are_cleared_in_half() -> None:
    small = {name: value.astype(np.float16) for name, value in (W3 | HALF).items()}
    pair = Pair(
        graph([MINUS, pool(of="low", into="m"), conv(of="m")], small, float16=True), contract()
    )
    assert pair.masked == ["low", "m"]
    fills = [i for i in pair.proto.graph.initializer if i.name.startswith(("ragged_z", "ragged_l"))]
    assert [fill.data_type for fill in fills] == [TensorProto.FLOAT16] * 2
    assert max(pair.differences(SIZES_PX)) <= 1e-3


CROP = {"from1": ints(1, 1), "from0": ints(0, 0), "axes": ints(2, 3), "one": ints(1)}


def crop(of: str, into: str, start: int) -> list[onnx.NodeProto]:
    """To the image's height and width, as torch's exporter writes it."""
    return [
        node("Shape", ["image"], f"{into}_size", start=1, end=3),
        node("Add", [f"{into}_size", f"from{start}"], f"{into}_end"),
        node("Slice", [of, f"from{start}", f"{into}_end", "axes"], into),
    ]


def same(kernel: int, dilation: int) -> Callable[[str, str, int], Any]:
    def layers(of: str, into: str, seed: int) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
        pads = [(kernel - 1) * dilation // 2] * 4
        names = [of, f"{into}_w", f"{into}_b"]
        made = node("Conv", names, into, pads=pads, dilations=[dilation] * 2)
        return [made], {
            names[1]: weights(3, 3, kernel, kernel, seed=seed) / kernel,
            names[2]: weights(3, seed=seed),
        }

    return layers


def lone(kind: str, **given: Any) -> Callable[[str, str, int], Any]:
    def layers(of: str, into: str, seed: int) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
        return [node(kind, [of], into, **given)], {}

    return layers


def lowered(of: str, into: str, seed: int) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    return [node("Sub", [of, "half"], into)], {}


def down_and_up(
    kernel: int, stride: int, pads: tuple[int, int], pooling: str | None, ceil: int
) -> Callable[[str, str, int], Any]:
    """A smaller map, a convolution of it, and a transposed convolution back, cut to the image."""

    def layers(of: str, into: str, seed: int) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
        small, seen, large = (f"{into}_{part}" for part in ("small", "seen", "large"))
        window = {
            "kernel_shape": [kernel] * 2,
            "strides": [stride] * 2,
            "pads": [pads[0]] * 2 + [pads[1]] * 2,
        }
        constants = {
            f"{into}_w": weights(3, 3, kernel, kernel, seed=seed) / kernel,
            f"{into}_v": weights(3, 3, 3, 3, seed=seed + 1) / 3,
            f"{into}_b": weights(3, seed=seed),
            f"{into}_u": weights(3, 1, 2 * stride, 2 * stride, seed=seed) / 2,
        }
        if pooling:  # whose padding must be less than its kernel
            window["pads"] = [min(pad, kernel - 1) for pad in window["pads"]]
            first = node(pooling, [of], small, ceil_mode=ceil, **window)
        else:
            first = node("Conv", [of, f"{into}_w", f"{into}_b"], small, **window)
        back = node("ConvTranspose", [seen, f"{into}_u"], large, strides=[stride] * 2, group=3)
        return [
            first,
            node("Conv", [small, f"{into}_v", f"{into}_b"], seen, pads=[1] * 4),
            back,
            *crop(large, into, start=1),
        ], constants

    return layers


BLOCKS = st.one_of(
    st.builds(same, st.sampled_from([1, 3, 5]), st.integers(1, 2)),
    st.sampled_from([
        lowered,
        lone("Relu"),
        lone("Sigmoid"),
        lone("LRN", size=3),
        lone("MaxPool", kernel_shape=[3, 3], pads=[1] * 4),
        lone("AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
    ]),
    st.builds(
        down_and_up,
        st.sampled_from([2, 3, 5]),
        st.sampled_from([2, 3, 4]),
        st.tuples(st.integers(0, 1), st.integers(0, 4)),
        st.sampled_from([None, "MaxPool"]),
        st.integers(0, 1),
    ),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    blocks=st.lists(BLOCKS, min_size=1, max_size=5),
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_whatever_is_not_refused_is_exact(
    blocks: list[Callable[[str, str, int], Any]], sizes: list[tuple[int, int]], seed: int
) -> None:
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = dict(HALF | CROP)
    of = "x"
    for index, block in enumerate(blocks):
        into = "y" if index == len(blocks) - 1 else f"map{index}"
        made, more = block(of, into, seed + index)
        nodes += made
        constants |= more
        of = into
    # Smaller pictures than the windows are the network's own trouble.
    plain = contract(min_side_px=6)
    sizes = [(max(6, height), max(6, width)) for height, width in sizes]
    try:
        pair = Pair(graph(nodes, constants), plain)
    except NotRagged:
        return
    assert max(pair.differences(sizes, seed)) <= 1e-5


def test_most_of_those_graphs_are_not_refused() -> None:
    """Or the test above would show little."""
    for pads, start_kernel in (((0, 1), 2), ((1, 2), 3), ((0, 4), 5)):
        for pooling in (None, "MaxPool"):
            if pooling and pads[1] >= start_kernel:
                continue
            made, constants = down_and_up(start_kernel, 2, pads, pooling, 0)("x", "y", 0)
            Pair(graph(made, constants | CROP), contract(min_side_px=6))


@pytest.mark.parametrize(
    ("nodes", "constants", "named"),
    [
        ([node("GlobalAveragePool", ["x"], "y")], {}, r"GlobalAveragePool \(y\) is not known"),
        ([node("InstanceNormalization", ["x", "b", "b"], "y")], W3, "InstanceNormalization"),
        ([node("ReduceMean", ["x"], "y")], {}, "ReduceMean"),
        (
            [node("Resize", ["x", "", "", "sizes"], "y", mode="linear")],
            {"sizes": ints(1, 3, 64, 64)},
            "Resize",
        ),
        (
            [node("QuantizeLinear", ["x", "s"], "q"), node("DequantizeLinear", ["q", "s"], "y")],
            {"s": np.array(0.1, np.float32)},
            "QuantizeLinear",
        ),
        (
            [pool("AveragePool")],
            {},
            "divides by the number of cells inside the picture",
        ),
        ([conv(auto_pad="SAME_UPPER")], W3, "pads by the picture's size"),
        ([conv(pads=[0] * 4)], W3, "label_map does not have the picture's size"),
        (
            [node("Pad", ["x", "pads"], "wide", mode="reflect"), conv(of="wide", pads=[0] * 4)],
            W3 | {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1)},
            "does not pad by a fixed number of zeros",
        ),
        (
            [node("Pad", ["x", "pads", "v"], "wide"), conv(of="wide", pads=[0] * 4)],
            W3 | {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1), "v": np.array(9, np.float32)},
            "does not pad by a fixed number of zeros",
        ),
        (
            [node("Add", ["x", "place"], "y")],
            {"place": weights(1, 1, 8, 8)},
            "has numbers of its own for every place",
        ),
        (
            [
                node("Shape", ["image"], "size", start=1, end=2),
                node("Cast", ["size"], "number", to=TensorProto.FLOAT),
                node("Mul", ["x", "number"], "y"),
            ],
            {},
            "depends on the size of the tensor",
        ),
        (
            [node("Slice", ["x", "starts", "ends", "axes2"], "y")],
            {"starts": ints(-9), "ends": ints(9), "axes2": ints(2)},
            "does not start at a fixed place",
        ),
        ([node("Concat", ["x", "x"], "y", axis=3)], {}, "not over the channels"),
        ([node("Softmax", ["x"], "y", axis=3)], {}, "not over the channels"),
        (
            [node("Gather", ["x", "row"], "y", axis=2)],
            {"row": ints(0)},
            "is not of channels",
        ),
        (
            [node("Transpose", ["x"], "y", perm=[1, 0, 2, 3])],
            {},
            "does not leave the batch in front",
        ),
        (
            [node("Reshape", ["x", "shape"], "y")],
            {"shape": ints(0, 3, -1, 8)},
            "may move pixels",
        ),
        (
            [node("RandomNormalLike", ["x"], "noise"), node("Add", ["x", "noise"], "y")],
            {},
            "RandomNormalLike",
        ),
        ([node("Relu", ["x"], "y", domain="elsewhere")], {}, "Relu"),
    ],
)
def test_refused_by_name(
    nodes: list[onnx.NodeProto], constants: dict[str, Array], named: str
) -> None:
    with pytest.raises(NotRagged, match=f"net cannot take images of several sizes.*{named}"):
        ragged(graph(nodes, constants), contract())


def test_a_map_whose_cells_do_not_follow_pixels_is_refused() -> None:
    """It loses two rows of one picture and none of the next."""
    nodes = [
        node("Shape", ["image"], "size", start=1, end=3),
        node("Mod", ["size", "two"], "odd"),
        node("Sub", ["size", "odd"], "even"),
        node("Sub", ["even", "odd"], "end"),
        MINUS,
        node("Slice", ["low", "from0", "end", "axes"], "part"),
        conv("seen", "part"),
        conv(),
    ]
    with pytest.raises(NotRagged, match="part has no fixed stride"):
        ragged(graph(nodes, W3 | HALF | CROP | {"two": ints(2, 2)}), contract())


@pytest.mark.parametrize(
    ("cells", "grid"),
    [
        (lambda px: px, Grid(1, 0)),
        (lambda px: px - 2, Grid(1, -2)),
        (lambda px: -(-px // 32), Grid(32, 31)),
        (lambda px: (px + 198) // 16 + 3, Grid(16, 246)),
        (lambda px: 2 * -(-px // 32) + 1, Grid(32, 31, 2, 1)),
        (lambda px: px - px % 3, Grid(3, 0, 3, 0)),
        (lambda px: px - 2 * (px % 2), None),
        (lambda px: px * px, None),
        (lambda px: 0 * px + 7, None),
        (lambda px: px // 128, None),
    ],
)
def test_grids(cells: Callable[[Array], Array], grid: Grid | None) -> None:
    """As cells for pictures of all heights from 5 px up; of so many, strides of 96 px at most."""
    spec = contract(min_side_px=5)
    heights = pictures(spec)[:, 0]
    found = grid_of(cells(heights), spec)
    assert found == grid
    if found is not None:
        again = found.rise * ((heights + found.shift) // found.step) + found.more
        assert (again == cells(heights)).all()


def test_an_old_graph_is_refused() -> None:
    proto = graph([conv()], W3)
    proto.opset_import[0].version = 12
    with pytest.raises(NotRagged, match="opset 12: convert it to 13"):
        ragged(proto, contract())


def test_a_graph_that_has_the_name_already_is_refused() -> None:
    proto = graph([node("Relu", ["x"], SIZES), conv(of=SIZES)], W3)
    with pytest.raises(NotRagged, match=f"has a tensor {SIZES} already"):
        ragged(proto, contract())


def test_sides_in_multiples_only() -> None:
    """Halving without a rest, as adopted networks may have it."""
    made, constants = down_and_up(2, 2, (0, 0), "MaxPool", 0)("x", "y", 0)
    pair = Pair(graph(made, constants | CROP), contract(multiple_of_px=8, min_side_px=8))
    assert max(pair.differences([(8, 16), (24, 8), (16, 16)])) <= EXACT
