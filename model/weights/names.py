"""Which layer of a file is which layer of a network, and the pixels its weights expect.

A network's layers have their Caffe names, so a Caffe file needs no table; where a module cannot
have the Caffe name (a `/` in it), `caffe` renames. A new network is a row of `NETWORKS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from model.weights.layers import Convention, LayerWeights

Normalisation = Literal["caffe", "torchvision"]

NORMALISATION: dict[Convention, Normalisation] = {
    "caffe": "caffe",
    "keras": "caffe",
    "torchvision": "torchvision",
}
"""Of which pixels weights of a convention were learned. `caffe`: BGR in 0..255 less the mean; a
first layer in BGR stays as it is, since the network's own `normalise` flips the colours. Keras
trained none of its VGG: its weights are the Caffe ones (recalled). A plain file does not say."""


@dataclass(frozen=True, slots=True)
class Names:
    """A file's layer names -> the network's, by convention.

    `dropped`: layers, by the network's names, that an FCN has no use for: the classifier.
    """

    torchvision: Mapping[str, str]
    keras: Mapping[str, str] = field(default_factory=dict)
    caffe: Mapping[str, str] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()

    def renamed(self, layers: LayerWeights, convention: Convention) -> LayerWeights:
        """With the network's names; what the table does not know keeps its own."""
        table = {
            "torchvision": self.torchvision,
            "keras": self.keras,
            "caffe": self.caffe,
            "plain": self.caffe,
        }[convention]
        return {table.get(name, name): layer for name, layer in layers.items()}


_VGG16_CONVS = [(block, i) for block, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]
_TORCHVISION_VGG16_FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Where the convolutions are in `vgg16().features`, between ReLUs and poolings."""

NETWORKS: dict[str, Names] = {
    "vgg16": Names(
        torchvision={
            f"features.{at}": f"conv{block}_{i}"
            for at, (block, i) in zip(_TORCHVISION_VGG16_FEATURES, _VGG16_CONVS, strict=True)
        }
        | {"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc8"},
        keras={f"block{block}_conv{i}": f"conv{block}_{i}" for block, i in _VGG16_CONVS}
        | {"fc1": "fc6", "fc2": "fc7", "predictions": "fc8"},
        dropped=frozenset({"fc8"}),
    )
}
"""MobileNetV1 is not here: its .npz of folded weights is used as it is, see `load_imagenet`."""
