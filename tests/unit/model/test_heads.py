"""Two heads over one backbone, which must do what two networks would."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.backbones.vgg16 import VGG16
from model.fcn import FCN
from model.heads import head_sizes, label_maps, split

HEADS = {"sem": 5, "geo": 3}
SCORES = {"32s": ("score_fr",), "16s": ("score_fr", "score_pool4")}
SCORES["8s"] = (*SCORES["16s"], "score_pool3")


def two_headed(variant: str) -> FCN:
    torch.manual_seed(0)
    backbone = VGG16("pad100", 8, width=1 / 32)
    network = FCN(backbone, HEADS, variant, upsampling="learned").eval()  # type: ignore[arg-type]
    for name, layer in network.named_modules():
        if name.startswith("score_") and isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.1)
    return network


@pytest.mark.parametrize("variant", ["32s", "16s", "8s"])
def test_layers_have_the_authors_names(variant: str) -> None:
    names = {name for name, _ in two_headed(variant).named_children()}
    wanted = {f"{score}_{head}" for score in SCORES[variant] for head in HEADS}
    assert {name for name in names if name.startswith("score_")} == wanted


@pytest.mark.parametrize("variant", ["32s", "16s", "8s"])
def test_each_head_alone_gives_its_logits(variant: str) -> None:
    network = two_headed(variant)
    images = torch.rand(2, 3, 33, 50) * 255
    with torch.inference_mode():
        logits = network(images)
        assert logits.shape == (2, 8, 33, 50)
        for head, wanted in split(logits, network.heads).items():
            alone = network.only(head)
            torch.testing.assert_close(alone(images), wanted)
            assert (alone.heads, alone.num_classes) == ({"": HEADS[head]}, HEADS[head])
            assert not any(name.endswith(("_sem", "_geo")) for name, _ in alone.named_modules())
    assert network.heads == HEADS  # as it was


def test_label_maps() -> None:
    logits = torch.zeros(2, 8, 4, 6)
    logits[:, 3], logits[:, 7, 0] = 1, 1
    labels = label_maps(logits, HEADS)
    assert (labels.dtype, labels.shape) == (torch.uint8, (2, 4, 6, 2))
    assert (labels[..., 0] == 3).all()
    assert labels[0, :2, 0, 1].tolist() == [2, 0]
    assert label_maps(logits, head_sizes(8)).shape == (2, 4, 6)
