"""Which inputs of which nodes of a graph must be cleared beyond the picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from model.contract import Contract
from model.ragged.layout import LAYOUT
from model.ragged.maps import BATCH, Array, Beyond, Layer, Map, NotRagged, Sizes
from model.ragged.numbers import evaluate, shape_of
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
    """Cell i of a map belongs to a picture of `side` pixels if start + step * i < side."""

    start: int
    step: int


def needs_of(proto: onnx.ModelProto, contract: Contract) -> Iterator[tuple[Need, Map]]:
    """In the order of the nodes. Raises: NotRagged."""
    walk = _Walk(proto.graph, contract)
    for place, node in enumerate(proto.graph.node):
        for name, beyond in walk.step(node):
            yield Need(place, name, beyond), walk.maps[name]
    walk.check_outputs(contract)


def grid_of(cells: Array, contract: Contract) -> Grid | None:
    """Of a map along one axis: int64 [P], of the pictures of `pictures`. None: it has no such grid.

    A convolution or pooling of a map with a grid gives one: floors of floors are one floor.
    """
    sides = pictures(contract)[:, 0]
    growth = int(cells[-1] - cells[0])
    if growth <= 0 or int(sides[-1] - sides[0]) % growth:
        return None
    step = int(sides[-1] - sides[0]) // growth
    start = int((sides - cells * step).max())
    fits = start < int((sides - (cells - 1) * step).min())
    return Grid(start, step) if fits and step * 2 <= _STEPS * contract.input.multiple_of_px else None


def pictures(contract: Contract) -> Sizes:
    """Heights and widths to try out, int64 [P,2], of those that the contract allows from the
    smallest up: heights rise, widths fall."""
    multiple = contract.input.multiple_of_px
    least = -(-contract.input.min_side_px // multiple) * multiple
    heights = least + multiple * np.arange(_STEPS + 1)
    return np.stack([heights, heights[::-1]], axis=1)


class _Walk:
    def __init__(self, graph: onnx.GraphProto, contract: Contract) -> None:
        self.pictures = pictures(contract)
        self.maps = {
            contract.input.name: Map(
                (1, 2), 4, self.pictures, TensorProto.UINT8, zero=True, positive=True
            )
        }
        self.constants: dict[str, Array] = {
            item.name: numpy_helper.to_array(item) for item in graph.initializer
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
            if found is None or found.axes != axes or not np.array_equal(
                found.sizes, self.pictures
            ):
                raise NotRagged(f"the output {name} does not have the picture's size")

    def _shapes(self, node: onnx.NodeProto, found: Map) -> Array:
        shapes = np.full((len(self.pictures), found.rank), _CHANNELS, np.int64)
        shapes[:, 0] = BATCH
        shapes[:, found.axes] = found.sizes
        given = {item.name: item.i for item in node.attribute}
        return np.stack([shape_of(shape, given) for shape in shapes])

    def _calculate(self, node: onnx.NodeProto, names: Sequence[str]) -> None:
        """A number from numbers; what else it may be is a name that no layer may use."""
        known = [name in self.constants or name in self.numbers for name in names]
        if not all(known):
            return
        if not any(name in self.numbers for name in names):
            value = evaluate(node, [self._value(name) for name in node.input])
            if value is not None:
                self.constants[node.output[0]] = value
            return
        rows = []
        for row in range(len(self.pictures)):
            value = evaluate(node, [self._value(name, row) for name in node.input])
            if value is None:
                return
            rows.append(value)
        self.numbers[node.output[0]] = np.stack(rows)

    def _value(self, name: str, row: int = 0) -> Any:
        if not name:
            return None
        return self.numbers[name][row] if name in self.numbers else self.constants[name]
