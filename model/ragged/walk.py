"""Which inputs of which nodes of a graph must be cleared beyond the picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from model.contract import Contract
from model.ragged.layout import LAYOUT
from model.ragged.maps import BATCH, Array, Beyond, Layer, Map, NotRagged, Sizes
from model.ragged.numbers import evaluator, shape_of
from model.ragged.pointwise import POINTWISE
from model.ragged.windows import WINDOWED

_HANDLERS = {**LAYOUT, **POINTWISE, **WINDOWED}

_STEPS = 192
"""Twice the coarsest stride that can be told from as many sides and one more; a multiple of all
powers of two up to 64, and of 3."""

_CHANNELS = 1009
"""In the place of a number of channels, which no size may depend on."""


@dataclass(frozen=True, slots=True)
class Need:
    """Of the map `name`, an input of the node at `place` in the graph."""

    place: int
    name: str
    beyond: Beyond


@dataclass(frozen=True, slots=True)
class Grid:
    """A map has `rise * ((side + shift) // step) + more` cells for a picture of `side` pixels."""

    step: int
    shift: int
    rise: int = 1
    more: int = 0


def needs_of(proto: onnx.ModelProto, contract: Contract) -> Iterator[tuple[Need, Map]]:
    """In the order of the nodes. Raises: NotRagged."""
    walk = _Walk(proto, contract)
    for place, node in enumerate(proto.graph.node):
        for name, beyond in walk.step(node):
            yield Need(place, name, beyond), walk.maps[name]
    walk.check_outputs(contract)


def grid_of(cells: Array, contract: Contract) -> Grid | None:
    """Of a map along one axis: int64 [P], for sides that rise as in `pictures`. None: it has none.

    Convolutions and poolings of a map with a grid have one (floors of floors are one floor), and so
    do transposed convolutions of it.
    """
    sides = pictures(contract)[:, 0]
    jumps = np.unique(np.diff(cells))
    rise = int(jumps[-1])
    growth = int(cells[-1] - cells[0])
    if not set(jumps) <= {0, rise} or growth <= 0 or int(sides[-1] - sides[0]) * rise % growth:
        return None
    step = int(sides[-1] - sides[0]) * rise // growth
    more = int(cells[0]) % rise
    turns = (cells - more) // rise
    shift = int((turns * step - sides).max())
    fits = shift < int(((turns + 1) * step - sides).min())
    tried = step * 2 <= _STEPS * contract.input.multiple_of_px
    return Grid(step, shift, rise, more) if fits and tried else None


def pictures(contract: Contract) -> Sizes:
    """Heights and widths to try out, int64 [P,2], of those that the contract allows from the
    smallest up: heights rise, widths fall."""
    multiple = contract.input.multiple_of_px
    least = -(-contract.input.min_side_px // multiple) * multiple
    heights = least + multiple * np.arange(_STEPS + 1)
    return np.stack([heights, heights[::-1]], axis=1)


class _Walk:
    def __init__(self, proto: onnx.ModelProto, contract: Contract) -> None:
        self.opsets = list(proto.opset_import)
        self.pictures = pictures(contract)
        self.maps = {
            contract.input.name: Map(
                (1, 2), 4, self.pictures, TensorProto.UINT8, zero=True, positive=True
            )
        }
        self.constants: dict[str, Array] = {
            item.name: numpy_helper.to_array(item) for item in proto.graph.initializer
        }
        self.numbers: dict[str, Array] = {}

    def step(self, node: onnx.NodeProto) -> list[tuple[str, Beyond]]:
        """Maps that must be cleared for it. Raises: NotRagged."""
        names = [name for name in node.input if name]
        maps = [self.maps[name] for name in names if name in self.maps]
        if not maps:
            self._calculate(node, names)
            return []
        if node.op_type == "Shape":
            self.numbers[node.output[0]] = self._shapes(node, maps[0])
            return []
        layer = Layer(node, maps, self.constants, self.numbers)
        handle = _HANDLERS.get(node.op_type)
        if handle is None or node.domain not in ("", "ai.onnx"):
            raise layer.refused("is not known to treat every place of a picture alike")
        if unknown := [
            name
            for name in names
            if not (name in self.maps or name in self.constants or name in self.numbers)
        ]:
            raise layer.refused(f"takes {unknown[0]!r}, which is neither in the file nor a map")
        result = handle(layer)
        for output in node.output:
            self.maps[output] = result.output
        return [
            (name, result.needs)
            for name in names
            if name in self.maps
            and (
                result.needs is Beyond.LOWEST
                or (result.needs is Beyond.ZERO and not self.maps[name].zero)
            )
        ]

    def check_outputs(self, contract: Contract) -> None:
        """Raises: NotRagged unless the outputs are of the pictures' sizes."""
        for name, axes in (
            (contract.outputs.label_map, (1, 2)),
            (contract.outputs.logits, (2, 3)),
        ):
            if name is None:
                continue
            found = self.maps.get(name)
            if (
                found is None
                or found.axes != axes
                or not np.array_equal(found.sizes, self.pictures)
            ):
                raise NotRagged(f"the output {name} does not have the picture's size")

    def _shapes(self, node: onnx.NodeProto, found: Map) -> Array:
        shapes = np.full((len(self.pictures), found.rank), _CHANNELS, np.int64)
        shapes[:, 0] = BATCH
        shapes[:, found.axes] = found.sizes
        return np.stack([shape_of(shape, node) for shape in shapes])

    def _calculate(self, node: onnx.NodeProto, names: Sequence[str]) -> None:
        """A number from numbers; what else it may be is a name that no layer may use."""
        if not all(name in self.constants or name in self.numbers for name in names):
            return
        evaluate = evaluator(node, self.opsets)
        if not any(name in self.numbers for name in names):
            value = evaluate([self.constants[name] for name in names])
            if value is not None:
                self.constants[node.output[0]] = value
            return
        rows = [
            evaluate([self._value(name, row) for name in names])
            for row in range(len(self.pictures))
        ]
        known = [row for row in rows if row is not None]
        if len(known) == len(rows) and len({row.shape for row in known}) == 1:
            self.numbers[node.output[0]] = np.stack(known)

    def _value(self, name: str, row: int) -> Array:
        return self.numbers[name][row] if name in self.numbers else self.constants[name]
