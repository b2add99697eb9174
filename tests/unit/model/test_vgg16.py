"""FCN on VGG16: the authors' padded form and the 'same' form.

Full-width networks run on torch's "meta" device, which computes shapes only; values are compared
on narrow ones, whose blocks have a few channels.
"""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.backbones.caffe import Padding
from model.backbones.vgg16 import VGG16
from model.build import NetworkSpec, build
from model.fcn import FCN, Variant

VARIANTS: tuple[Variant, ...] = get_args(Variant)
PADDINGS: tuple[Padding, ...] = get_args(Padding)


def narrow(padding: Padding, preprocessing: str = "caffe", dropout: float = 0.5) -> VGG16:
    torch.manual_seed(0)
    return VGG16(padding, 8, preprocessing, dropout, width=1 / 16)


def randomise_scores(network: FCN) -> None:
    """Score layers start at zero, which would make every comparison a comparison of zeros."""
    for name, layer in network.named_modules():
        if name.startswith("score") and isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)  # type: ignore[arg-type]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    ("variant", "wanted"), [("32s", 134_346_581), ("16s", 134_357_354), ("8s", 134_362_751)]
)
def test_parameters_for_21_classes(padding: Padding, variant: Variant, wanted: int) -> None:
    """32s: the 134M of table 1 in arXiv 1411.4038; 8s adds the scores of two pools, 16,170."""
    with torch.device("meta"):
        network = build(NetworkSpec("vgg16", variant, padding=padding), 21)
    assert sum(parameter.numel() for parameter in network.parameters()) == wanted


def test_learned_upsampling_adds_the_papers_dense_kernels() -> None:
    with torch.device("meta"):
        fixed = build(NetworkSpec("vgg16", "8s"), 21)
        learned = build(NetworkSpec("vgg16", "8s", upsampling="learned"), 21)
    names = {name for name, _ in fixed.named_parameters()}
    extra = {name for name, _ in learned.named_parameters()} - names
    assert extra == {"upscore2.weight", "upscore_pool4.weight"}
    assert learned.get_parameter("upscore2.weight").shape == (21, 21, 4, 4)


def test_layers_have_their_caffe_names_and_shapes() -> None:
    with torch.device("meta"):
        shapes = {
            name: tuple(parameter.shape)
            for name, parameter in VGG16("pad100").named_parameters()
            if name.endswith("weight")
        }
    convs = [f"conv{b}_{i + 1}" for b, n in enumerate((2, 2, 3, 3, 3), start=1) for i in range(n)]
    assert [name.removesuffix(".weight") for name in shapes] == [*convs, "fc6", "fc7"]
    assert shapes["conv3_1.weight"] == (256, 128, 3, 3)
    assert shapes["fc6.weight"] == (4096, 512, 7, 7)
    assert shapes["fc7.weight"] == (4096, 4096, 1, 1)


def test_both_forms_take_the_same_weights() -> None:
    same, padded = narrow("same"), narrow("pad100")
    same.load_state_dict(padded.state_dict())
    assert "mean" not in same.state_dict()


def caffe_net(weights: dict[str, Tensor], images: Tensor, variant: Variant) -> Tensor:
    """The authors' net layer by layer, with their numbers, for the same weights.

    Source: voc-fcn32s, voc-fcn16s and voc-fcn8s/net.py of shelhamer/fcn.berkeleyvision.org;
    crop offsets as in the prototxt files they generate; those of 4s go on in the same way.
    """

    def conv(name: str, x: Tensor, pad: int = 0) -> Tensor:
        return functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=pad)

    def upsample(x: Tensor, factor: int) -> Tensor:
        near = (torch.arange(2 * factor) - (factor - 0.5)).abs()
        row = 1 - near / factor
        kernel = (row[:, None] * row[None, :]).expand(x.shape[1], 1, -1, -1)
        return functional.conv_transpose2d(x, kernel, stride=factor, groups=x.shape[1])

    def crop(x: Tensor, like: Tensor, offset: int) -> Tensor:
        height, width = like.shape[2:]
        cut = x[:, :, offset : offset + height, offset : offset + width]
        assert cut.shape[2:] == like.shape[2:]
        return cut

    x = images.flip(1) - torch.tensor([104.00699, 116.66877, 122.67892]).view(1, 3, 1, 1)
    pools = {}
    for block, convs in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)):
        for index in range(1, convs + 1):
            pad = 100 if (block, index) == (1, 1) else 1
            x = conv(f"backbone.conv{block}_{index}", x, pad).relu()
        x = pools[block] = functional.max_pool2d(x, 2, 2, ceil_mode=True)
    x = conv("backbone.fc7", conv("backbone.fc6", x).relu()).relu()
    score = conv("score_fr", x)
    if variant == "32s":
        return crop(upsample(score, 32), images, 19)
    upscore2 = upsample(score, 2)
    fuse_pool4 = upscore2 + crop(conv("score_pool4", pools[4]), upscore2, 5)
    if variant == "16s":
        return crop(upsample(fuse_pool4, 16), images, 27)
    upscore_pool4 = upsample(fuse_pool4, 2)
    fuse_pool3 = upscore_pool4 + crop(conv("score_pool3", pools[3]), upscore_pool4, 9)
    if variant == "8s":
        return crop(upsample(fuse_pool3, 8), images, 31)
    upscore_pool3 = upsample(fuse_pool3, 2)
    fuse_pool2 = upscore_pool3 + crop(conv("score_pool2", pools[2]), upscore_pool3, 17)
    return crop(upsample(fuse_pool2, 4), images, 33)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pad100_is_the_authors_net(variant: Variant) -> None:
    network = FCN(narrow("pad100"), 3, variant).eval()
    randomise_scores(network)
    for size in ((1, 1), (45, 90)):
        images = torch.rand(1, 3, *size) * 255
        with torch.inference_mode():
            got = network(images)
            wanted = caffe_net(network.state_dict(), images, variant)
        largest = float(wanted.abs().max())
        assert largest > 0.1
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4 * largest)


def test_caffe_normalisation_flips_to_bgr_and_takes_the_mean() -> None:
    red = torch.tensor([255.0, 10.0, 20.0]).view(1, 3, 1, 1)
    got = narrow("same", "caffe").preprocess(red).flatten()
    torch.testing.assert_close(got, torch.tensor([20 - 104.00699, 10 - 116.66877, 255 - 122.67892]))


def test_torchvision_normalisation_keeps_rgb() -> None:
    red = torch.tensor([255.0, 0.0, 127.5]).view(1, 3, 1, 1)
    got = narrow("same", "torchvision").preprocess(red).flatten()
    wanted = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.5 - 0.406) / 0.225]
    torch.testing.assert_close(got, torch.tensor(wanted))


def test_normalisation_happens_before_the_padding() -> None:
    """The 100 pixels around the image are zero after the mean is taken, as in Caffe."""
    backbone = narrow("pad100").eval()
    mean = torch.tensor([122.67892, 116.66877, 104.00699]).view(1, 3, 1, 1)
    features = backbone(mean.expand(1, 3, 4, 4))
    assert features[8] is not None
    assert features[8].abs().max() < 1e-3  # biases start at zero


def test_dropout_is_elementwise_and_only_in_training() -> None:
    torch.manual_seed(0)
    backbone = narrow("same")
    images = torch.rand(1, 3, 320, 320) * 255
    with torch.no_grad():
        whole = backbone.eval().forward(images)[32]
        assert torch.equal(backbone(images)[32], whole)
        backbone.drop6.p = 0.0  # fc6 as in eval mode, so that only drop7 makes the difference
        dropped = backbone.train()(images)[32]
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])
    active = whole > 0
    share = (kept & active).sum() / active.sum()
    assert 0.35 < share < 0.65
    by_map = (kept & active).sum(dim=(2, 3)) / active.sum(dim=(2, 3)).clamp(min=1)
    busy = active.sum(dim=(2, 3)) > 50
    assert busy.any() and ((by_map[busy] > 0.2) & (by_map[busy] < 0.8)).all()


def test_activations_neither_vanish_nor_explode_at_the_start() -> None:
    torch.manual_seed(0)
    backbone = VGG16("same", 64, width=1 / 8).eval()
    with torch.inference_mode():
        fc7 = backbone(torch.rand(1, 3, 128, 128) * 255)[32]
    assert 0.5 < fc7.std() < 2000  # the input's own spread is about 74
