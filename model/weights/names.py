"""Which layer of a file is which layer of a network, and the pixels its weights expect.

A network's layers have their Caffe names, so a Caffe file needs no table; where a module cannot
have the Caffe name (a `/` in it), `caffe` renames. A new network is a row of `NETWORKS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from model.weights.layers import Convention, LayerWeights, WeightsError, WeightsFile
from model.weights.norms import fold_norms

Normalisation = Literal["caffe", "torchvision", "nyudv2", "siftflow", "tensorflow"]

NORMALISATION: dict[Convention, Normalisation] = {
    "caffe": "caffe",
    "keras": "caffe",
    "torchvision": "torchvision",
}
"""Of which pixels weights of a convention were learned. `caffe`: BGR in 0..255 less the mean; a
first layer in BGR stays as it is, since the network's own `normalise` flips the colours. Keras
trained none of its VGG: its weights are the Caffe ones (recalled). A plain file does not say."""

_CAFFE_ONLY: tuple[Normalisation, ...] = ("caffe",)


@dataclass(frozen=True, slots=True)
class Normed:
    """Names in files of a form with batch norms. `after`: a norm -> its convolution, both as the
    file names them."""

    layers: Mapping[str, str]
    after: Mapping[str, str]
    eps: float


@dataclass(frozen=True, slots=True)
class Names:
    """A file's layer names -> the network's, by convention.

    `dropped`: layers, by the network's names, that an FCN has no use for: the classifiers.
    `pixels`: what the network can be fed. `implied`: of which pixels weights of a convention were.
    `normed`: the same network with batch norms. `foreign`: a layer of another network that goes by
    the same name -> in what it differs.
    """

    torchvision: Mapping[str, str] = field(default_factory=dict)
    keras: Mapping[str, str] = field(default_factory=dict)
    caffe: Mapping[str, str] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    pixels: tuple[Normalisation, ...] = _CAFFE_ONLY
    implied: Mapping[Convention, Normalisation] = field(default_factory=lambda: NORMALISATION)
    normed: Mapping[Convention, Normed] = field(default_factory=dict)
    foreign: Mapping[str, str] = field(default_factory=dict)

    def renamed(self, layers: LayerWeights, convention: Convention) -> LayerWeights:
        """With the network's names; what the table does not know keeps its own."""
        table = {
            "torchvision": self.torchvision,
            "keras": self.keras,
            "caffe": self.caffe,
            "plain": self.caffe,
        }[convention]
        return _renamed(layers, table)

    def read(self, file: WeightsFile) -> tuple[LayerWeights, dict[str, str]]:
        """The layers by the network's names, batch norms folded in, and which norm went where.

        Raises: WeightsError if the file is of another network, if a norm has no place, or if two
        layers are the same one.
        """
        for layer, difference in self.foreign.items():
            if layer in file.layers:
                raise WeightsError(difference)
        if not file.norms:
            layers, folded = self.renamed(file.layers, file.convention), {}
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


_VGG16_CONVS = [(block, i) for block, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]
_TORCHVISION_VGG16_FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Where the convolutions are in `vgg16().features`, between ReLUs and poolings."""
_TORCHVISION_VGG16_BN_FEATURES = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
"""In `vgg16_bn().features`, where a norm follows each."""
_TORCHVISION_VGG16_CLASSIFIER = {
    "classifier.0": "fc6",
    "classifier.3": "fc7",
    "classifier.6": "fc8",
}


def _torchvision_vgg16(features: tuple[int, ...]) -> dict[str, str]:
    return {
        f"features.{at}": f"conv{block}_{i}"
        for at, (block, i) in zip(features, _VGG16_CONVS, strict=True)
    } | _TORCHVISION_VGG16_CLASSIFIER


_VGG16 = Names(
    torchvision=_torchvision_vgg16(_TORCHVISION_VGG16_FEATURES),
    keras={f"block{block}_conv{i}": f"conv{block}_{i}" for block, i in _VGG16_CONVS}
    | {"fc1": "fc6", "fc2": "fc7", "predictions": "fc8"},
    dropped=frozenset({"fc8"}),
    pixels=("caffe", "torchvision", "nyudv2", "siftflow"),
    normed={
        "torchvision": Normed(
            _torchvision_vgg16(_TORCHVISION_VGG16_BN_FEATURES),
            {f"features.{at + 1}": f"features.{at}" for at in _TORCHVISION_VGG16_BN_FEATURES},
            eps=1e-5,
        )
    },
)
"""The norms' eps is that of `torch.nn.BatchNorm2d`."""

_ALEXNET = Names(
    dropped=frozenset({"fc8"}),
    foreign={
        "features.0": "it is torchvision's AlexNet, which is another network than the CaffeNet "
        "that the paper and this project have: 64 and 192 filters first instead of 96 and 256, no "
        "groups, no normalisation across channels. Its weights cannot be used: take "
        "bvlc_reference_caffenet.caffemodel"
    },
)
"""Source of the difference: `torchvision/models/alexnet.py` of pytorch/vision; its issue 185."""

_INCEPTIONS = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
_BRANCHES = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj")
_GOOGLENET_LAYERS = [
    "conv1/7x7_s2",
    "conv2/3x3_reduce",
    "conv2/3x3",
    *(f"inception_{name}/{branch}" for name in _INCEPTIONS for branch in _BRANCHES),
]
_GOOGLENET = Names(
    caffe={name: name.replace("/", ".") for name in _GOOGLENET_LAYERS},
    dropped=frozenset({
        *(f"loss{i}/{layer}" for i in (1, 2) for layer in ("conv", "fc", "classifier")),
        "loss3/classifier",
    }),
    foreign={
        "inception3a.branch1.conv": "it is torchvision's GoogLeNet, which is another network than "
        "the one that the paper and this project have: it pools before inception 5a over 2x2 "
        "pixels instead of 3x3, does not normalise across channels, and takes RGB in -1..1. Its "
        "3x3 kernels for 5x5 and its batch norms could be rewritten, those three differences not. "
        "Its weights cannot be used: take bvlc_googlenet.caffemodel"
    },
)  # fmt: skip
"""`loss1` and `loss2` are the auxiliary classifiers.

Source of the names: `models/bvlc_googlenet/train_val.prototxt` of BVLC/caffe; of the difference:
`torchvision/models/googlenet.py` of pytorch/vision.
"""

_MOBILENET_V1_KERAS = {"conv1": "conv0"} | {
    f"conv_{kind}_{i}": f"{kind}{i}" for i in range(1, 14) for kind in ("dw", "pw")
}
_MOBILENET_V1 = Names(
    dropped=frozenset({"conv_preds", "logits"}),
    pixels=("tensorflow",),
    implied={"keras": "tensorflow", "plain": "tensorflow"},
    normed={
        "keras": Normed(
            _MOBILENET_V1_KERAS, {f"{name}_bn": name for name in _MOBILENET_V1_KERAS}, eps=1e-3
        )
    },
)
"""RGB in -1..1. Source of the names: `MobileNet` of keras.applications, whose stride-2 layers pad
after the last row and column as ours do; its norms' eps is Keras' own."""

NETWORKS: dict[str, Names] = {
    "vgg16": _VGG16,
    "alexnet": _ALEXNET,
    "googlenet": _GOOGLENET,
    "mobilenet_v1": _MOBILENET_V1,
}
