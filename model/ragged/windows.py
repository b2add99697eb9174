"""Convolutions and poolings: whether their windows reach past a picture's last cell."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from model.ragged.maps import Array, Beyond, Handler, Layer, Result, Sizes


@dataclass(frozen=True, slots=True)
class _Window:
    """int64 [2] each, height and width. kernel: with its dilation."""

    kernel: Array
    stride: Array
    before: Array
    after: Array


def _window(layer: Layer) -> _Window:
    given = layer.given
    if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise layer.refused("pads by the picture's size")
    kernel = given.get("kernel_shape")
    if kernel is None:
        weight = layer.constant(1)
        if weight is None:
            raise layer.refused("has a kernel of unknown size")
        kernel = weight.shape[2:]
    if len(kernel) != 2 or layer.maps[0].axes != (2, 3):
        raise layer.refused("is not over height and width")
    dilation = np.array(given.get("dilations", [1, 1]))
    pads = given.get("pads", [0, 0, 0, 0])
    return _Window(
        (np.array(kernel) - 1) * dilation + 1,
        np.array(given.get("strides", [1, 1])),
        np.array(pads[:2]),
        np.array(pads[2:]),
    )


def _windowed(layer: Layer, sizes: Sizes) -> tuple[Sizes, bool, bool]:
    """Of a convolution or pooling: its map's sizes, whether its windows reach past the end of the
    input's, and whether those beyond its own map see nothing else."""
    window = _window(layer)
    span = sizes + window.before + window.after - window.kernel
    cells = span // window.stride + 1
    if layer.given.get("ceil_mode", 0):
        cells = -(-span // window.stride) + 1
        # No window starts in the padding behind.
        cells -= (cells - 1) * window.stride >= sizes + window.before
    last = (cells - 1) * window.stride - window.before + window.kernel - 1
    following = cells * window.stride - window.before
    return cells, bool((last >= sizes).any()), bool((following >= sizes).all())


def _convolution(layer: Layer) -> Result:
    first = layer.maps[0]
    sizes, reaches, _ = _windowed(layer, first.sizes)
    if len(layer.maps) > 1:
        raise layer.refused("has weights that depend on the picture")
    output = replace(first, sizes=sizes, zero=False, positive=False)
    return Result(output, Beyond.ZERO if reaches else Beyond.ANYTHING)


def _max_pool(layer: Layer) -> Result:
    """Of a picture alone it sees no zeros beyond the edge: they may be there only where no value is
    below them."""
    first = layer.maps[0]
    sizes, reaches, clear = _windowed(layer, first.sizes)
    needs = (Beyond.ZERO if first.positive else Beyond.LOWEST) if reaches else Beyond.ANYTHING
    zero = clear and (first.zero or needs is Beyond.ZERO) and needs is not Beyond.LOWEST
    positive = first.positive and needs is not Beyond.LOWEST
    return Result(replace(first, sizes=sizes, zero=zero, positive=positive), needs)


def _average_pool(layer: Layer) -> Result:
    first, given = layer.maps[0], layer.given
    sizes, reaches, _ = _windowed(layer, first.sizes)
    if reaches and (given.get("ceil_mode", 0) or not given.get("count_include_pad", 0)):
        raise layer.refused("divides by the number of cells inside the picture")
    output = replace(first, sizes=sizes, zero=False)
    return Result(output, Beyond.ZERO if reaches else Beyond.ANYTHING)


def _transposed(layer: Layer) -> Result:
    """Output j takes the cells i with 0 <= j + before - stride * i < kernel."""
    first, given = layer.maps[0], layer.given
    if "output_shape" in given:
        raise layer.refused("has an output_shape")
    if len(layer.maps) > 1:
        raise layer.refused("has weights that depend on the picture")
    window = _window(layer)
    more = np.array(given.get("output_padding", [0, 0]))
    sizes = window.stride * (first.sizes - 1) + window.kernel + more - window.before - window.after
    last = (sizes - 1 + window.before) // window.stride
    reaches = bool((last >= first.sizes).any())
    output = replace(first, sizes=sizes, zero=False, positive=False)
    return Result(output, Beyond.ZERO if reaches else Beyond.ANYTHING)


WINDOWED: dict[str, Handler] = {
    "AveragePool": _average_pool,
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "MaxPool": _max_pool,
}
