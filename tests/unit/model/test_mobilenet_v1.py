"""MobileNetV1: its alignment, its weights file and the norms that are restored from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from model.backbones.conv_norm import ConvNorm
from model.backbones.mobilenet_v1 import MobileNetV1

Arrays = dict[str, npt.NDArray[Any]]


def backbone(fc6_channels: int = 0) -> MobileNetV1:
    torch.manual_seed(0)
    return MobileNetV1(fc6_channels=fc6_channels, dropout=0.0).eval()


def layers(network: MobileNetV1) -> dict[str, ConvNorm]:
    return {
        name: layer
        for name, layer in network.named_children()
        if isinstance(layer, ConvNorm) and name != "fc6"
    }


def random_images(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(0, 255, shape)).float()


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    """A weights file's content: random layers."""
    random = np.random.default_rng(1)
    made: Arrays = {}
    for name, layer in layers(backbone()).items():
        outputs, inputs, rows, columns = layer.conv.weight.shape
        shape = (outputs, inputs, rows, columns)
        spread = (2 / (rows * columns * inputs)) ** 0.5
        made[f"{name}/w"] = (spread * random.normal(size=shape)).astype(np.float32)
        made[f"{name}/b"] = (0.2 * random.normal(size=outputs)).astype(np.float32)
    return made


@pytest.fixture(scope="module")
def weights(arrays: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("weights") / "mobilenet_v1.npz", arrays)


def write(path: Path, arrays: Arrays) -> Path:
    said = {"network": "mobilenet_v1", "preprocessing": "tensorflow"}
    np.savez(path, **arrays, **said)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("size", [(1, 1), (6, 9)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_layers_train_in_bf16_as_they_predict(
    size: tuple[int, int], kernel: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and gradients: training computes the layer another way, for speed. Autocast leaves
    double as it is, so both can be compared to the last digits."""
    torch.manual_seed(0)
    layer = ConvNorm(4, 4, kernel, stride, groups=4, activation=False).double()
    layer.norm.eps = 0.0
    layer.norm.requires_grad_(False)
    image = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    results, other_way = [], []

    def depthwise(x: Tensor) -> Tensor:
        other_way.append(layer.training)
        return ConvNorm._depthwise(layer, x)

    monkeypatch.setattr(layer, "_depthwise", depthwise)
    for training in (True, False):
        layer.train(training)
        layer.norm.eval()  # its own two ways of computing are not what is compared
        with torch.autocast("cpu", torch.bfloat16, enabled=training):
            value = layer(image)
        results.append(
            (value, *torch.autograd.grad(value.square().sum(), (image, layer.conv.weight)))
        )
    for trained, evaluated in zip(*results, strict=True):
        torch.testing.assert_close(trained, evaluated, rtol=0, atol=1e-12)
    assert other_way == [True]


def test_wide_depthwise_layers_train_in_fp32() -> None:
    """The backward of a 5x5 one takes four to six times as long in bf16 (bench/LOG.md)."""
    layer = ConvNorm(4, 4, 5, groups=4)
    seen = []
    layer.norm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        layer(random_images(1, 4, 6, 6).bfloat16())
        layer.eval()(random_images(1, 4, 6, 6).bfloat16())
    assert seen == [torch.float32, torch.bfloat16]


def test_every_layer_but_fc6_is_loaded(weights: Path) -> None:
    network = backbone(fc6_channels=8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_imagenet(weights)
    changed = {
        name.split(".")[0]
        for name, value in network.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == set(layers(network))
    assert len(changed) == 27


def test_a_file_in_the_layout_of_tensorflow_lite(
    weights: Path, arrays: Arrays, tmp_path: Path
) -> None:
    """[O,H,W,I], depthwise [1,H,W,C], and no word of what it is for."""
    orders = {name: (1, 2, 3, 0) if name.startswith("dw") else (0, 2, 3, 1) for name in arrays}
    turned = {
        name: array.transpose(orders[name]) if array.ndim == 4 else array
        for name, array in arrays.items()
    }
    np.savez(tmp_path / "tflite.npz", **turned)  # type: ignore[arg-type]
    network, wanted = backbone(), backbone()
    network.load_imagenet(tmp_path / "tflite.npz")
    wanted.load_imagenet(weights)
    for name, value in wanted.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name


def _without(name: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {key: value for key, value in arrays.items() if key != name}


def _with(name: str, *shape: int) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | {name: np.zeros(shape, np.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("pw7/w"), "'pw7' has a bias but no weight"),
        (_without("dw13/b"), "dw13: mismatch, has no bias"),
        (_with("conv0/w", 32, 4, 3, 3), "conv0: mismatch, weight 32x4x3x3, want 32x3x3x3"),
        (_with("dw2/w", 64, 1, 3, 2), "dw2: mismatch, weight 64x1x3x2, want 64x1x3x3"),
        (_with("pw1/b", 32), "pw1: mismatch, bias 32, want 64"),
    ],
)
def test_a_weights_file_that_does_not_fit(
    change: Callable[[Arrays], Arrays], message: str, arrays: Arrays, tmp_path: Path
) -> None:
    path = write(tmp_path / "bad.npz", change(arrays))
    with pytest.raises(ValueError, match=message):
        backbone().load_imagenet(path)


@pytest.mark.parametrize("loaded", [True, False])
def test_restored_norms_leave_the_function_as_it_was(loaded: bool, weights: Path) -> None:
    network = backbone()
    if loaded:
        network.load_imagenet(weights)
    probe = random_images(1, 3, 40, 33).flip(2)
    with torch.inference_mode():
        before = network(probe)
        network.restore_norms([random_images(2, 3, 33, 40), random_images(1, 3, 64, 64)])
        after = network(probe)
    for was, is_ in zip(before.values(), after.values(), strict=True):
        assert was.abs().max() > 0
        torch.testing.assert_close(is_, was, rtol=1e-3, atol=1e-3 * float(was.abs().max()))


def test_restored_norms_hold_the_statistics_of_their_batches(weights: Path) -> None:
    """So training mode on those very images computes what eval mode does: no jump."""
    network = backbone()
    network.load_imagenet(weights)
    images = random_images(4, 3, 64, 48)
    network.restore_norms([images])
    assert not network.training
    conv0 = layers(network)["conv0"]
    with torch.no_grad():
        seen = conv0._convolve(network.preprocess(images)).double()
        torch.testing.assert_close(
            conv0.norm.running_mean, seen.mean(dim=(0, 2, 3)).float(), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            conv0.norm.running_var,
            seen.var(dim=(0, 2, 3), correction=0).float(),
            rtol=1e-4,
            atol=1e-5,
        )
        evaluated = network(images)
        trained = network.train()(images)
    for one, other in zip(trained.values(), evaluated.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2 * float(other.abs().max()))


def test_restore_norms_without_images_changes_nothing(weights: Path) -> None:
    network = backbone()
    network.load_imagenet(weights)
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="need at least one batch"):
        network.restore_norms([])
    assert network.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_restore_norms_leaves_no_hook_behind_when_the_images_fail(weights: Path) -> None:
    def broken() -> Any:
        yield random_images(1, 3, 8, 8)
        raise OSError("the disk is gone")

    network = backbone().train()
    with pytest.raises(OSError, match="the disk is gone"):
        network.restore_norms(broken())
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())


def test_fc6_is_not_pretrained() -> None:
    network = backbone(fc6_channels=8)
    parts = network.pretrained_modules()
    assert network.fc6 not in parts
    assert all(layer in parts for layer in layers(network).values())
