"""Names of a network's layers in the files of other programs, and the preprocessing they expect.

A network's layers have their Caffe names, so a Caffe file needs no table; where a module cannot
have the Caffe name (a `/` in it), `caffe` renames. Each backbone's file has its own `Names`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from model.weights.layers import Convention, LayerWeights, WeightsError, WeightsFile
from model.weights.norms import fold_norms

IMPLIED: dict[Convention, str] = {
    "caffe": "caffe",
    "keras": "caffe",
    "torchvision": "torchvision",
}
"""The preprocessing that weights of a convention were learned with. With `caffe`, a first layer
in BGR stays as it is, since the network's own preprocessing flips the colours. Keras
trained none of its VGG: its weights are the Caffe ones (recalled). A plain file does not say."""


@dataclass(frozen=True, slots=True)
class Normed:
    """Names in files of a form with batch norms. `after`: a norm -> its convolution, both as the
    file names them."""

    layers: Mapping[str, str]
    after: Mapping[str, str]
    eps: float


@dataclass(frozen=True, slots=True)
class Names:
    """Maps a file's layer names to the network's, by convention.

    `dropped`: layers, by the network's names, that an FCN has no use for: the classifiers.
    `implied`: the preprocessing by a file's convention.
    `normed`: the same network with batch norms. `foreign`: a layer of another network that goes by
    the same name -> in what it differs. `depthwise`: layers by which a plain file shows that it has
    TensorFlow Lite's layout, [O,H,W,I] and depthwise [1,H,W,C].
    """

    torchvision: Mapping[str, str] = field(default_factory=dict)
    keras: Mapping[str, str] = field(default_factory=dict)
    caffe: Mapping[str, str] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    implied: Mapping[Convention, str] = field(default_factory=lambda: IMPLIED)
    normed: Mapping[Convention, Normed] = field(default_factory=dict)
    foreign: Mapping[str, str] = field(default_factory=dict)
    depthwise: frozenset[str] = frozenset()

    def renamed(self, layers: LayerWeights, convention: Convention) -> LayerWeights:
        """Renames layers as the network does; what the table does not know keeps its own name."""
        table = {
            "torchvision": self.torchvision,
            "keras": self.keras,
            "caffe": self.caffe,
            "plain": self.caffe,
        }[convention]
        return _renamed(layers, table)

    def read(self, file: WeightsFile) -> tuple[LayerWeights, dict[str, str]]:
        """Gives the layers by the network's names, batch norms folded in, and where each norm went.

        Raises: WeightsError if the file is of another network, if a norm has no place, or if two
        layers are the same one.
        """
        for layer, difference in self.foreign.items():
            if layer in file.layers:
                raise WeightsError(difference)
        if not file.norms:
            layers, folded = self.renamed(file.layers, file.convention), {}
            if file.convention == "plain" and is_tflite(layers, self.depthwise):
                layers = from_tflite(layers, self.depthwise)
        elif file.convention in self.normed:
            normed = self.normed[file.convention]
            layers = fold_norms(file.layers, file.norms, normed.after, normed.eps)
            layers = _renamed(layers, normed.layers)
            folded = {name: normed.layers[normed.after[name]] for name in file.norms}
        else:
            raise WeightsError(
                f"it has batch norms ({', '.join(list(file.norms)[:3])} ...), which the network "
                "has not and which cannot be told from here where to fold"
            )
        if len(layers) != len(file.layers):
            raise WeightsError("two of its layers are the same one of the network")
        return layers, folded


def _renamed(layers: LayerWeights, table: Mapping[str, str]) -> LayerWeights:
    return {table.get(name, name): layer for name, layer in layers.items()}


def is_tflite(layers: LayerWeights, depthwise: frozenset[str]) -> bool:
    """Tell whether depthwise layers are [1,H,W,C], as in TensorFlow Lite, and not [C,1,H,W]."""
    shapes = [layers[name].weight.shape for name in depthwise if name in layers]
    return any(len(shape) == 4 and shape[0] == 1 < shape[1] for shape in shapes)


def from_tflite(layers: LayerWeights, depthwise: frozenset[str]) -> LayerWeights:
    """Turns every layer to [O,I,H,W]. Raises: WeightsError naming one that is no convolution."""
    turned: LayerWeights = {}
    for name, layer in layers.items():
        if layer.weight.ndim != 4:
            raise WeightsError(f"{name} has the shape {layer.weight.shape}: want four sides")
        order = (3, 0, 1, 2) if name in depthwise else (0, 3, 1, 2)
        turned[name] = layer._replace(weight=layer.weight.transpose(order))
    return turned
