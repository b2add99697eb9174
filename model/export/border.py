"""Cells of a padded canvas that are equal by construction, computed once instead of many times.

The paper's nets pad the picture by 100 pixels. What lies between the picture's reach and the edge's
is the same in every column (above and below: in every row), layer by layer. So the first layers may
run on a canvas from which all but one of these columns are missing; their copies are put back where
a layer sees farther. Nothing is approximated: an output differs only if the runtime's sums depend
on where in a map a cell lies.

Source of the padding: `voc-fcn8s/net.py` of shelhamer/fcn.berkeleyvision.org.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from model.export.onnx_file import attributes

LEAST_PADDING_PX = 16
"""Below it there is nothing to gain."""

_PASSED = frozenset({"Relu", "Clip", "Dropout", "LRN", "Identity"})
"""Operators that look at one place of the map."""


@dataclass(frozen=True, slots=True)
class _Window:
    """A convolution or pooling along one axis."""

    kernel: int
    stride: int
    before: int
    after: int
    ceil: bool

    def size(self, cells: int) -> int:
        span = cells + self.before + self.after - self.kernel
        if not self.ceil:
            return span // self.stride + 1
        count = -(-span // self.stride) + 1
        # The last window must begin inside the map, as in PyTorch and ONNX.
        return count - ((count - 1) * self.stride >= cells + self.before)


@dataclass(frozen=True, slots=True)
class _Band:
    """Of a map's cells along one axis: `first` .. `first + count - 1` are alike, and so are the
    `count` cells that end `last` cells before the end."""

    first: int
    last: int
    count: int
    stride: int


def trim_border(graph: onnx.GraphProto) -> int:
    """Make the padding of the first layers smaller; returns by how many pixels on each side.

    0 where nothing can be left out, and then the graph stays as it is: there is no such padding, or
    the layers after it are not a chain of convolutions and poolings.
    """
    padded = [n for n in graph.node if n.op_type == "Conv" and _is_plain(n)]
    return max(
        (_trim(graph, n) for n in padded if _window(graph, n).before >= LEAST_PADDING_PX), default=0
    )


def _trim(graph: onnx.GraphProto, first: onnx.NodeProto) -> int:
    chain = list(_chain(graph, first))
    windows = [_window(graph, node) for node in chain]
    places: list[tuple[onnx.NodeProto, _Band, int]] = []
    missing_px = windows[0].before
    for index, node in enumerate(chain):
        if node.op_type != "MaxPool":
            continue
        band = _band(windows[: index + 1])
        # Whole cells, so that the others stay where they were; one of the band remains.
        missing_px = min((band.count - 1) * band.stride, missing_px // band.stride * band.stride)
        if missing_px <= 0:
            break
        places.append((node, band, missing_px))
    for (node, band, missing_px), later_px in zip(
        places, [*(px for _, _, px in places[1:]), 0], strict=False
    ):
        _insert(graph, node, band, (missing_px - later_px) // band.stride)
    if not places:
        return 0
    for item in first.attribute:
        if item.name == "pads":
            item.ints[:] = [pad - places[0][2] for pad in item.ints]
    return places[0][2]


def _chain(graph: onnx.GraphProto, first: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Convolutions and poolings from `first` on, as long as each follows the last.

    Side branches may leave the chain after a pooling.
    """
    users: dict[str, list[onnx.NodeProto]] = {}
    for user in graph.node:
        for name in user.input:
            users.setdefault(name, []).append(user)
    node = first
    results = {value.name for value in graph.output}
    while True:
        if node.op_type in ("Conv", "MaxPool"):
            if not _is_plain(node):
                return
            yield node
        elif node.op_type not in _PASSED:
            return
        following = [n for n in users.get(node.output[0], ()) if n.op_type != "Shape"]
        if node.output[0] in results or len(node.output) > 1:
            return
        pool = node.op_type == "MaxPool"
        forward = [n for n in following if n.op_type == "Conv"] if pool else following
        spatial = [n for n in forward if n.op_type != "Conv" or _kernel(graph, n) > 1]
        if len(forward) != 1 and len(spatial) != 1:
            return
        node = forward[0] if len(forward) == 1 else spatial[0]


def _band(windows: list[_Window]) -> _Band:
    """What all widths of a picture have in common, along one axis, after these layers."""
    stride = int(np.prod([w.stride for w in windows]))
    firsts, lasts, ends, begins = [1], [1], [], []
    for width in range(1, 2 * stride + 1):
        alike = _alike(windows, width)
        edges = np.flatnonzero(np.diff(alike, prepend=0, append=0))
        if len(edges) != 4:  # not one run before the picture and one behind it
            return _Band(1, 1, 0, stride)
        firsts.append(int(edges[0]))
        ends.append(int(edges[1]))
        begins.append(len(alike) - int(edges[2]))
        lasts.append(len(alike) - int(edges[3]))
    first, last = max(firsts), max(lasts)
    return _Band(first, last, min(min(ends) - first, min(begins) - last), stride)


def _alike(windows: list[_Window], width: int) -> npt.NDArray[np.int64]:
    """1 for the cells that see neither the picture nor the padding of a layer after the first."""
    pad = windows[0].before
    image = np.zeros(pad + width + windows[0].after, bool)
    image[pad : pad + width] = True
    sees = _apply(image, windows[0], padded=True, outside=False)
    for window in windows[1:]:
        sees = _apply(sees, window, padded=False, outside=True)
    return (~sees).astype(np.int64)


def _apply(
    cells: npt.NDArray[np.bool_], window: _Window, *, padded: bool, outside: bool
) -> npt.NDArray[np.bool_]:
    """Whether any cell of a window is set; cells beyond the map count as `outside`.

    padded: the window's padding is in `cells` already.
    """
    before = 0 if padded else window.before
    count = _Window(window.kernel, window.stride, before, 0 if padded else window.after,
                    window.ceil).size(len(cells))  # fmt: skip
    found = np.zeros(count, bool)
    for index in range(count):
        start = index * window.stride - before
        inside = cells[max(start, 0) : start + window.kernel]
        found[index] = inside.any() or (outside and len(inside) < window.kernel)
    return found


def _insert(graph: onnx.GraphProto, node: onnx.NodeProto, band: _Band, copies: int) -> None:
    """After `node`: `copies` more of a cell of the band, on each side of both axes."""
    if copies == 0:
        return
    whole, stem = node.output[0], f"{node.output[0]}.border"
    inner = f"{stem}.trimmed"
    nodes: list[onnx.NodeProto] = []

    def hold(values: list[int], name: str) -> str:
        if not any(tensor.name == name for tensor in graph.initializer):
            graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    source = inner
    farthest = hold([np.iinfo(np.int64).max], f"{stem}.end")
    for axis in (2, 3):
        at = f"{stem}.{axis}"
        axes = hold([axis], f"{at}.axis")
        # A cell of the band on the left, and one on the right, as often as it is missing.
        cuts = {
            "left": (hold([0], f"{stem}.0"), hold([band.first], f"{at}.a")),
            "one": (hold([band.first], f"{at}.a"), hold([band.first + 1], f"{at}.b")),
            "middle": (hold([band.first], f"{at}.a"), hold([-band.last], f"{at}.d")),
            "other": (hold([-band.last - 1], f"{at}.c"), hold([-band.last], f"{at}.d")),
            "right": (hold([-band.last], f"{at}.d"), farthest),
        }
        for name, (start, end) in cuts.items():
            nodes.append(
                helper.make_node(
                    "Slice", [source, start, end, axes], [f"{at}.{name}"], name=f"{at}.{name}"
                )  # fmt: skip
            )
        parts = ["left", *["one"] * copies, "middle", *["other"] * copies, "right"]
        target = whole if axis == 3 else f"{at}.whole"
        nodes.append(
            helper.make_node(
                "Concat",
                [f"{at}.{part}" for part in parts],
                [target],
                name=f"{at}.whole",
                axis=axis,
            )  # fmt: skip
        )
        source = target
    node.output[0] = inner
    place = list(graph.node).index(node) + 1
    for offset, new in enumerate(nodes):
        graph.node.insert(place + offset, new)


def _window(graph: onnx.GraphProto, node: onnx.NodeProto) -> _Window:
    given = attributes(node)
    pads = list(given.get("pads", [0, 0, 0, 0]))
    stride = list(given.get("strides", [1, 1]))[0]
    return _Window(_kernel(graph, node), stride, pads[0], pads[2], bool(given.get("ceil_mode", 0)))


def _kernel(graph: onnx.GraphProto, node: onnx.NodeProto) -> int:
    given = attributes(node)
    if "kernel_shape" in given:
        return int(given["kernel_shape"][0])
    weight = next(tensor for tensor in graph.initializer if tensor.name == node.input[1])
    return int(weight.dims[2])


def _is_plain(node: onnx.NodeProto) -> bool:
    """The same along both axes, without dilation, with padding given in numbers."""
    given = attributes(node)
    pads = list(given.get("pads", [0, 0, 0, 0]))
    return (
        given.get("auto_pad", b"NOTSET") == b"NOTSET"
        and set(given.get("dilations", [1, 1])) == {1}
        and len(set(given.get("strides", [1, 1]))) == 1
        and len(set(given.get("kernel_shape", [1, 1]))) == 1
        and pads[0] == pads[1]
        and pads[2] == pads[3]
    )
