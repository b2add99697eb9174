"""The networks in ragged batches: labels equal, logits equal but for the order of sums."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model.backbones import googlenet
from model.backbones.alexnet import AlexNet
from model.backbones.base import Backbone
from model.backbones.googlenet import GoogLeNet
from model.backbones.mobilenet_v1 import MobileNetV1
from model.backbones.vgg16 import VGG16
from model.contract import Contract
from model.export import export
from model.fcn import FCN, Variant
from tests.narrow_network import narrow
from tests.unit.model.ragged_graphs import Pair
from tests.unit.model.test_export import CLASSES, make_contract

EXACT = 1e-6
"""Relative to the largest logit; most are equal to the last bit."""

_VGG = {"channels": (4, 4, 6, 8, 8), "fc_channels": 16}

NETS: dict[str, tuple[Callable[[], Backbone], Variant, int]] = {
    "mobilenet_v1-8s": (lambda: MobileNetV1(fc6_channels=16), "8s", 4),
    "vgg16-16s": (lambda: VGG16(**_VGG), "16s", 0),  # type: ignore[arg-type]
    "vgg16-8s-pad100": (lambda: VGG16("pad100", **_VGG), "8s", 0),  # type: ignore[arg-type]
    "alexnet-32s": (lambda: AlexNet(fc_channels=16, channels=(4, 8, 6, 8, 4)), "32s", 0),
    "googlenet-8s": (lambda: GoogLeNet(width=1 / 16), "8s", 0),
}
"""One for each backbone and each head, and one of the authors' form. All pairs of them, GoogLeNet
whole, were tried when this was written, with the same outcome."""

SIDES = st.integers(1, 300)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    made: dict[str, Pair] = {}

    def pair(name: str) -> Pair:
        if name not in made:
            path = tmp_path_factory.mktemp("nets") / "model.onnx"
            with pytest.MonkeyPatch.context() as patch:
                _fewer_inceptions(patch)
                # As for `fcn export --ragged`: what a trimmed padding repeats depends on the size.
                export(_network(name), make_contract(), path, trim=False)
            proto = onnx.load(path)
            metadata = {p.key: p.value for p in proto.metadata_props}
            made[name] = Pair(proto, Contract.from_metadata(metadata, name))
        return made[name]

    return pair


def _fewer_inceptions(patch: pytest.MonkeyPatch) -> None:
    """One after each pooling, of nine: the export of all takes half a minute."""
    names = ("3b", "4e", "5b")
    patch.setattr(googlenet, "_POOL_BEFORE", names)
    patch.setattr(googlenet, "_INCEPTIONS", {n: googlenet._INCEPTIONS[n] for n in names})


def _network(name: str) -> FCN:
    """Narrow, with scores and biases that are not zero: so what lies beyond an image is not."""
    backbone, variant, skip_channels = NETS[name]
    torch.manual_seed(1)
    with pytest.MonkeyPatch.context() as patch:
        narrow(patch)
        network = FCN(backbone(), CLASSES, variant, skip_channels=skip_channels)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.uniform_(module.bias, 0.1, 0.6)
    return network.eval()


@pytest.mark.parametrize("name", NETS)
def test_each_answer_is_the_one_it_has_alone(name: str, pairs: Callable[[str], Pair]) -> None:
    pair = pairs(name)  # outside of what hypothesis runs and times

    @settings(max_examples=15, deadline=None)
    @given(
        sizes=st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=4),
        seed=st.integers(0, 99),
    )
    def mates(sizes: list[tuple[int, int]], seed: int) -> None:
        assert max(pair.differences(sizes, seed)) <= EXACT

    mates()


def test_masks_are_few(pairs: Callable[[str], Pair]) -> None:
    """One for each depthwise and 3x3 convolution and upsampling; 1x1 convolutions need none."""
    pair = pairs("mobilenet_v1-8s")
    convolutions = [n for n in pair.proto.graph.node if n.op_type.startswith("Conv")]
    assert len(convolutions) > 2 * len(pair.masked) - 8
    assert len(pair.masked) == 1 + 13 + 1 + 3  # pixels, dw1 to dw13, fc6's input, scores
    assert sum(n.op_type == "And" for n in pair.proto.graph.node) == 6  # strides 1 to 32
