"""From a graph to one that takes the sizes of its images as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model.contract import FORMAT_VERSION, METADATA_KEY, Contract
from model.ragged.maps import Beyond, Map, NotRagged
from model.ragged.walk import Grid, Need, grid_of, needs_of

SIZES = "image_sizes"
"""Name of the input, int64 [N,2]: height and width of each image."""

_OPSET = 13
"""The oldest whose operators are used as they are written here."""


def ragged(proto: onnx.ModelProto, contract: Contract) -> tuple[onnx.ModelProto, Contract]:
    """A copy of the graph with the input `SIZES`, and the contract that names it.

    In front of each layer whose windows would see, beyond a picture, something else than they do
    when it is alone, one `Where` clears what lies there; masks are computed once for each stride.

    Raises: NotRagged, naming the layer for which this does not do.
    """
    if contract.input.sizes is not None:
        raise NotRagged(f"{contract.model_name} is ragged already")
    opset = next(item.version for item in proto.opset_import if item.domain in ("", "ai.onnx"))
    if opset < _OPSET:
        raise NotRagged(
            f"{contract.model_name} is of opset {opset}: convert it to {_OPSET} or above"
        )
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    graph = changed.graph
    masks = _Masks(graph, contract)
    try:
        before = _clear(graph, list(needs_of(proto, contract)), masks)
    except NotRagged as error:
        raise NotRagged(
            f"{contract.model_name} cannot take images of several sizes in a batch: {error}"
        ) from error
    nodes = list(masks.nodes)
    for place, node in enumerate(graph.node):
        nodes += [*before.get(place, ()), node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(masks.constants)
    graph.input.append(helper.make_tensor_value_info(SIZES, TensorProto.INT64, ["batch", 2]))
    contract = replace(
        contract, input=replace(contract.input, sizes=SIZES), format_version=FORMAT_VERSION
    )
    helper.set_model_props(
        changed,
        {p.key: p.value for p in proto.metadata_props} | {METADATA_KEY: contract.to_json()},
    )
    onnx.checker.check_model(changed)
    return changed, contract


def _clear(
    graph: onnx.GraphProto, needs: Sequence[tuple[Need, Map]], masks: _Masks
) -> dict[int, list[onnx.NodeProto]]:
    """Turns inputs to what `Where` leaves of them; gives the new nodes, by the place of the node
    they belong in front of. Raises: NotRagged."""
    before: dict[int, list[onnx.NodeProto]] = {}
    cleared: dict[tuple[str, Beyond], str] = {}
    for need, found in needs:
        key = need.name, need.beyond
        if key not in cleared:
            cleared[key] = f"ragged_{need.name}_{need.beyond.value}"
            fill = masks.fill(found, need.beyond)
            inputs = [masks.mask(found, need.name), need.name, fill]
            node = helper.make_node("Where", inputs, [cleared[key]], name=cleared[key])
            before.setdefault(need.place, []).append(node)
        node = graph.node[need.place]
        for index, name in enumerate(node.input):
            if name == need.name:
                node.input[index] = cleared[key]
    return before


class _Masks:
    """bool maps, true where a cell is the picture's: one for each stride and order of axes."""

    def __init__(self, graph: onnx.GraphProto, contract: Contract) -> None:
        taken = {name for node in graph.node for name in (*node.input, *node.output)}
        if taken & {SIZES}:
            raise NotRagged(f"the graph has a tensor {SIZES} already")
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._contract = contract
        self._made: set[str] = set()

    def fill(self, found: Map, beyond: Beyond) -> str:
        """Name of the number that clears a map."""
        dtype = helper.tensor_dtype_to_np_dtype(found.dtype)
        if beyond is Beyond.ZERO:
            return self._constant(f"ragged_zero_{found.dtype}", np.zeros((), dtype))
        lowest = np.finfo(dtype).min if np.issubdtype(dtype, np.floating) else np.iinfo(dtype).min
        return self._constant(f"ragged_lowest_{found.dtype}", np.array(lowest, dtype))

    def mask(self, found: Map, name: str) -> str:
        """Raises: NotRagged if the map's cells do not lie on a grid of the picture's pixels."""
        parts = []
        for side in range(2):
            grid = grid_of(self._along(found, side), self._contract)
            if grid is None:
                raise NotRagged(
                    f"{name} has no fixed stride: its cells are not in step with pixels"
                )
            parts.append(self._inside(side, grid, found.axes[side], found.rank))
        return self._node("And", parts, f"{parts[0]}_and_{parts[1].removeprefix('ragged_')}")

    def _along(self, found: Map, side: int) -> Any:
        # Widths are tried out from the largest down.
        return found.sizes[:, side] if side == 0 else found.sizes[::-1, side]

    def _inside(self, side: int, grid: Grid, axis: int, rank: int) -> str:
        """bool, with one axis longer than 1 besides the batch: height (side 0) or width (1)."""
        kind = ("height", "width")[side]
        stem = f"ragged_{kind}_{grid.step}_{grid.shift}_{grid.rise}_{grid.more}".replace("-", "m")
        shape = self._node("Shape", [self._contract.input.name], "ragged_shape")
        index = self._constant(f"ragged_{kind}_index", np.array(side + 1, np.int64))
        total = self._node("Gather", [shape, index], f"ragged_{kind}", axis=0)
        column = self._constant(f"ragged_{kind}_column", np.array(side, np.int64))
        sides = self._node("Gather", [SIZES, column], f"ragged_{kind}s", axis=1)
        nought, one = (self._constant(f"ragged_{n}", np.array(n, np.int64)) for n in (0, 1))
        total = self._cells(total, grid, f"{stem}_total")
        cells = self._node("Range", [nought, total, one], f"{stem}_cells")
        along = self._constant(f"ragged_axis_{axis}_of_{rank}", _shape(rank, axis))
        cells = self._node("Reshape", [cells, along], f"{stem}_cells_{axis}_of_{rank}")
        own = self._cells(sides, grid, f"{stem}_own")
        lone = self._constant(f"ragged_axis_0_of_{rank}", _shape(rank, 0))
        own = self._node("Reshape", [own, lone], f"{stem}_own_of_{rank}")
        return self._node("Less", [cells, own], f"{stem}_{axis}_of_{rank}")

    def _cells(self, sides: str, grid: Grid, stem: str) -> str:
        """How many a map has for pictures of these sides."""
        for kind, number in (
            ("Add", grid.shift),
            ("Div", grid.step),
            ("Mul", grid.rise),
            ("Add", grid.more),
        ):
            if number != (kind in ("Div", "Mul")):  # else it changes nothing
                constant = self._constant(f"ragged_{number}", np.array(number, np.int64))
                sides = self._node(kind, [sides, constant], f"{stem}_{kind}_{number}")
        return sides

    def _node(self, kind: str, inputs: list[str], output: str, **given: Any) -> str:
        if output not in self._made:
            self._made.add(output)
            self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **given))
        return output

    def _constant(self, name: str, value: Any) -> str:
        if name not in self._made:
            self._made.add(name)
            self.constants.append(numpy_helper.from_array(value, name))
        return name


def _shape(rank: int, axis: int) -> Any:
    """As `Reshape` takes it: all of a vector along one axis."""
    shape = np.ones(rank, np.int64)
    shape[axis] = -1
    return shape
