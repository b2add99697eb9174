"""CaffeNet, VGG16 with batch norms and Keras' MobileNet, narrow, written as their frameworks
compute them, to hold the imported networks against."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.vgg_classifier import CONVS, NARROW, Classifier

CAFFENET_CHANNELS = (4, 8, 12, 12, 8)
CAFFENET_FC = 128
"""CaffeNet's at a width of 1/32."""


class CaffeNet(nn.Module):
    """float [N,3,227,227], normalised -> [N,5] scores, as BVLC's reference CaffeNet."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        one, two, three, four, five = CAFFENET_CHANNELS
        self.conv1 = nn.Conv2d(3, one, 11, 4)
        self.conv2 = nn.Conv2d(one, two, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(two, three, 3, padding=1)
        self.conv4 = nn.Conv2d(three, four, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(four, five, 3, padding=1, groups=2)
        self.fc6 = nn.Linear(five * 36, CAFFENET_FC)
        self.fc7 = nn.Linear(CAFFENET_FC, CAFFENET_FC)
        self.fc8 = nn.Linear(CAFFENET_FC, 5)
        for layer in self.children():
            nn.init.kaiming_normal_(layer.get_parameter("weight"), nonlinearity="relu")
            nn.init.normal_(layer.get_parameter("bias"))

    def features(self, x: Tensor) -> Tensor:
        """float [N,CAFFENET_FC]: fc7 after its ReLU."""
        norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)
        x = norm(functional.max_pool2d(self.conv1(x).relu(), 3, 2, ceil_mode=True))
        x = norm(functional.max_pool2d(self.conv2(x).relu(), 3, 2, ceil_mode=True))
        x = self.conv5(self.conv4(self.conv3(x).relu()).relu()).relu()
        x = functional.max_pool2d(x, 3, 2, ceil_mode=True).flatten(1)
        fc7: Tensor = self.fc7(self.fc6(x).relu()).relu()
        return fc7

    def blobs(self) -> dict[str, list[np.ndarray]]:
        """Gives the blobs by Caffe's names."""
        return {
            name: [
                layer.get_parameter("weight").detach().numpy(),
                layer.get_parameter("bias").detach().numpy(),
            ]
            for name, layer in self.named_children()
        }


class NormedClassifier(Classifier):
    """VGG16 with batch norms, as torchvision's vgg16_bn."""

    def __init__(self) -> None:
        super().__init__()
        features: list[nn.Module] = []
        inputs = 3
        for (_, convs), outputs in zip(CONVS, NARROW, strict=True):
            for _ in range(convs):
                norm = nn.BatchNorm2d(outputs)
                for name, low, high in (
                    ("weight", 0.5, 2),
                    ("bias", -1, 1),
                    ("running_mean", -5, 5),
                    ("running_var", 0.01, 9),
                ):
                    nn.init.uniform_(getattr(norm, name), low, high)
                features += [nn.Conv2d(inputs, outputs, 3, padding=1), norm, nn.ReLU()]
                inputs = outputs
            features.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*features)


def keras_mobilenet(channels: tuple[int, ...], strides: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The arrays of Keras' MobileNet, norms and classifier included."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}

    def convolution(name: str, kernel: tuple[int, ...], kind: str = "kernel") -> None:
        outputs = kernel[2] if kind == "depthwise_kernel" else kernel[3]
        fan_in = kernel[0] * kernel[1] * (1 if kind == "depthwise_kernel" else kernel[2])
        arrays[f"{name}/{kind}:0"] = rng.normal(0, (2 / fan_in) ** 0.5, kernel)
        for array, low, high in (
            ("gamma", 0.7, 1.4),
            ("beta", 0, 1),
            ("moving_mean", -0.3, 0.3),
            ("moving_variance", 0.5, 2),
        ):
            arrays[f"{name}_bn/{array}:0"] = rng.uniform(low, high, outputs)

    inputs = channels[0] // 2 if channels[0] > 8 else 8
    convolution("conv1", (3, 3, 3, inputs))
    for index, outputs in enumerate(channels, start=1):
        convolution(f"conv_dw_{index}", (3, 3, inputs, 1), "depthwise_kernel")
        convolution(f"conv_pw_{index}", (1, 1, inputs, outputs))
        inputs = outputs
    assert len(strides) == len(channels)
    arrays["conv_preds/kernel:0"] = rng.normal(size=(1, 1, inputs, 7))
    arrays["conv_preds/bias:0"] = rng.normal(size=7)
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def run_keras_mobilenet(
    arrays: dict[str, np.ndarray], strides: tuple[int, ...], x: Tensor
) -> Tensor:
    """float [N,3,H,W] in -1..1 -> the last block's map, as Keras computes it: zero padding by one
    row and column at the end where the stride is 2, norms with eps 0.001."""

    def array(name: str) -> Tensor:
        return torch.from_numpy(arrays[f"{name}:0"])

    def layer(name: str, x: Tensor, stride: int, depthwise: bool = False) -> Tensor:
        kind = "depthwise_kernel" if depthwise else "kernel"
        order: Any = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
        weight = array(f"{name}/{kind}").permute(order)
        groups = weight.shape[0] if depthwise else 1
        if stride == 2:
            x = functional.conv2d(functional.pad(x, (0, 1, 0, 1)), weight, stride=2, groups=groups)
        else:
            x = functional.conv2d(x, weight, padding=weight.shape[2] // 2, groups=groups)
        mean, variance = array(f"{name}_bn/moving_mean"), array(f"{name}_bn/moving_variance")
        scale, shift = array(f"{name}_bn/gamma"), array(f"{name}_bn/beta")
        return functional.relu6(functional.batch_norm(x, mean, variance, scale, shift, eps=1e-3))

    x = layer("conv1", x, 2)
    for index, stride in enumerate(strides, start=1):
        x = layer(f"conv_dw_{index}", x, stride, depthwise=True)
        x = layer(f"conv_pw_{index}", x, 1)
    return x
