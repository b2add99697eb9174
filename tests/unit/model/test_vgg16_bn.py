"""VGG16 with batch norm, narrow: what its norms do in training, at the start and in the export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.backbones.vgg16 import VGG16
from model.weights.layers import Layer
from model.weights.start import write_start_weights


def backbone(batch_norm: bool = True) -> VGG16:
    torch.manual_seed(0)
    return VGG16("same", 8, "torchvision", width=1 / 16, batch_norm=batch_norm)


def random_images(count: int, height: int = 40, width: int = 48) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, height, width, generator=generator) * 255


def write_weights(path: Path) -> Path:
    """Writes those of a plain VGG16, with biases."""
    random = np.random.default_rng(0)
    layers = {}
    for name, module in backbone(batch_norm=False).named_modules():
        if isinstance(module, nn.Conv2d) and name.startswith("conv"):
            weight = module.weight.detach().numpy()
            bias = random.normal(size=len(weight)).astype(np.float32)
            layers[name] = Layer(weight, bias)
    write_start_weights(path, layers, network="vgg16", preprocessing="torchvision")
    return path


def test_a_norm_follows_each_convolution_of_the_blocks() -> None:
    norms = {name for name, m in backbone().named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert len(norms) == 13
    assert {"norm1_1", "norm5_3"} < norms
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone(False).modules())


def test_in_training_each_map_has_mean_0_and_variance_1_before_its_relu() -> None:
    network = backbone().train()
    seen: list[Tensor] = []
    norm = network.get_submodule("norm3_2")
    norm.register_forward_hook(lambda _m, _i, out: seen.append(out.clone()))  # ReLU overwrites it
    network(random_images(2))
    (normed,) = seen
    assert normed.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    torch.testing.assert_close(
        normed.var(dim=(0, 2, 3), correction=0), torch.ones(16), rtol=1e-2, atol=1e-2
    )


def test_imagenet_weights_of_the_plain_net_start_it_as_that_net(tmp_path: Path) -> None:
    """Also after its norms were given the statistics of images, and then in training, too."""
    path = write_weights(tmp_path / "vgg16.npz")
    plain, normed = backbone(batch_norm=False).eval(), backbone().eval()
    normed.load_state_dict(plain.state_dict(), strict=False)  # fc6 and fc7 are not in the file
    for network in (plain, normed):
        network.load_imagenet(path)
    images = random_images(3)
    with torch.inference_mode():
        wanted = plain(images)
        for restored in (False, True):
            if restored:
                normed.restore_norms([images])
            for one, other in zip(normed(images).values(), wanted.values(), strict=True):
                assert other.abs().max() > 0
                torch.testing.assert_close(
                    one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max())
                )
        for name in ("drop6", "drop7"):
            normed.get_submodule(name).p = 0.0  # type: ignore[assignment]
        trained = normed.train()(images)
    for one, other in zip(trained.values(), wanted.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2 * float(other.abs().max()))
