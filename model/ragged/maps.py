"""Which cells of each map of a graph belong to a picture that lies, with zeros after it, in the top
left corner of a larger tensor: and what each layer must not see beyond them.

Of a picture alone, a map has a certain number of cells, and a window that reaches past the last
sees zeros (a max pooling sees nothing). In a larger tensor the map has more cells, and the window
sees them. The answer is the same if they are zero, and may be another if not. So of each map this
says how many cells it has for pictures of many sizes, which is read off kernels, strides, paddings
and crops; whether a layer's windows reach past the last of them; and whether what lies there is
zero already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from model.ragged.numbers import attributes

Array = npt.NDArray[Any]
Sizes = npt.NDArray[np.int64]

BATCH = 2
"""Images in each of the tensors that are tried out."""


class NotRagged(ValueError):
    """With this layer images of several sizes cannot share a tensor; the message names it."""


class Beyond(Enum):
    """What a layer must find in the cells of its input that are not the picture's."""

    ANYTHING = "anything"
    ZERO = "zero"
    LOWEST = "lowest"


@dataclass(frozen=True, slots=True)
class Map:
    """axes: which of `rank` are height and width; the first is always the batch.

    sizes: int64 [P,2], cells for each of P pictures. dtype: of ONNX. zero: all is zero in a
    ragged tensor beyond them. positive: no value anywhere is below zero.
    """

    axes: tuple[int, int]
    rank: int
    sizes: Sizes
    dtype: int
    zero: bool = False
    positive: bool = False


@dataclass(frozen=True, slots=True)
class Layer:
    """One node whose first inputs are maps. `constants`: those of its inputs that are the same for
    every picture; `numbers`: int64 [P,...], those that follow from its size."""

    node: onnx.NodeProto
    maps: list[Map]
    constants: Mapping[str, Array]
    numbers: Mapping[str, Array]

    @property
    def given(self) -> dict[str, Any]:
        return attributes(self.node)

    def constant(self, place: int) -> Array | None:
        """Of the input at `place`; None if it is left out. Raises: NotRagged if it varies."""
        name = self.node.input[place] if place < len(self.node.input) else ""
        if not name:
            return None
        if name not in self.constants:
            raise self.refused("takes a number that is not in the file")
        return self.constants[name]

    def refused(self, why: str) -> NotRagged:
        return NotRagged(f"{self.node.op_type} ({self.node.name or self.node.output[0]}) {why}")


@dataclass(frozen=True, slots=True)
class Result:
    """`output`: of the node's outputs, which are alike. `needs`: of its inputs."""

    output: Map
    needs: Beyond = Beyond.ANYTHING


Handler = Callable[[Layer], Result]
"""What a node does to its maps. Raises: NotRagged."""


def alike(layer: Layer) -> Map:
    """Of a layer that looks at one place at a time: the first map, if the others fit it."""
    first = layer.maps[0]
    for other in layer.maps[1:]:
        if (other.axes, other.rank) != (first.axes, first.rank) or not np.array_equal(
            other.sizes, first.sizes
        ):
            raise layer.refused("joins maps of different sizes")
    for name in layer.node.input:
        if name in layer.numbers and name not in layer.constants:
            raise layer.refused("depends on the size of the tensor")
        shape = np.shape(layer.constants.get(name, 0))
        aligned = (1,) * (first.rank - len(shape)) + shape
        if any(aligned[axis] != 1 for axis in first.axes):
            raise layer.refused("has numbers of its own for every place")
    return first


def channel_axis(layer: Layer) -> int:
    """The layer's axis, counted from the front."""
    first, axis = layer.maps[0], layer.given.get("axis", 1)
    axis = axis + first.rank if axis < 0 else axis
    if axis == 0 or axis in first.axes:
        raise layer.refused("is not over the channels")
    return int(axis)


def without(found: Map, axis: int) -> Map:
    axes = (found.axes[0] - (found.axes[0] > axis), found.axes[1] - (found.axes[1] > axis))
    return replace(found, axes=axes, rank=found.rank - 1)
