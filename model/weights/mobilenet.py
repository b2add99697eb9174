"""The layout of MobileNetV1's start weights: TensorFlow Lite's, which its loader reads.

A convolution is O,H,W,I and a depthwise one 1,H,W,C; everywhere else here they are O,I,H,W and
C,1,H,W. Layers `dw1` to `dw13` are the depthwise ones.
"""

from __future__ import annotations

from collections.abc import Mapping

from model.weights.layers import LayerWeights, WeightsError

_TO_FILE = {True: (1, 2, 3, 0), False: (0, 2, 3, 1)}
_FROM_FILE = {True: (3, 0, 1, 2), False: (0, 3, 1, 2)}
"""By whether the layer is depthwise."""


def from_file_layout(layers: LayerWeights) -> LayerWeights:
    """Raises: WeightsError naming a layer that is no convolution."""
    return _transposed(layers, _FROM_FILE)


def to_file_layout(layers: LayerWeights) -> LayerWeights:
    """Raises: WeightsError naming a layer that is no convolution."""
    return _transposed(layers, _TO_FILE)


def _transposed(layers: LayerWeights, orders: Mapping[bool, tuple[int, ...]]) -> LayerWeights:
    turned: LayerWeights = {}
    for name, layer in layers.items():
        if layer.weight.ndim != 4:
            raise WeightsError(f"{name} has the shape {layer.weight.shape}: want four sides")
        order = orders[name.startswith("dw")]
        turned[name] = layer._replace(weight=layer.weight.transpose(order))
    return turned
