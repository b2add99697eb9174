"""A narrow VGG16 classifier, written as torchvision writes its own, and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WIDTH = 1 / 32
NARROW = (2, 4, 8, 16, 16)
FC = 128
"""VGG16's channels at that width."""
CONVS = ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3))
LAYERS = [f"conv{block}_{i}" for block, convs in CONVS for i in range(1, convs + 1)]


class Classifier(nn.Module):
    """float [N,3,224,224], normalised -> [N,5] scores."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        features: list[nn.Module] = []
        inputs = 3
        for (_, convs), outputs in zip(CONVS, NARROW, strict=True):
            for _ in range(convs):
                features += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
                inputs = outputs
            features.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(
            nn.Linear(inputs * 49, FC),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(FC, FC),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(FC, 5),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.normal_(layer.get_parameter("bias"))

    def fc7(self, x: Tensor) -> Tensor:
        """float [N,FC], after its ReLU."""
        fc7: Tensor = self.classifier[:5](self.features(x).flatten(1))
        return fc7


def caffe_arrays(classifier: Classifier) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Weight and bias by Caffe's names, fully connected ones [O,I]."""
    layers = [
        module for module in classifier.modules() if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    return {
        name: (layer.weight.detach().numpy(), layer.get_parameter("bias").detach().numpy())
        for name, layer in zip([*LAYERS, "fc6", "fc7", "fc8"], layers, strict=True)
    }


def write_pth(path: Path, classifier: Classifier) -> None:
    torch.save(classifier.state_dict(), path)


def write_plain_npz(path: Path, classifier: Classifier) -> None:
    arrays: dict[str, Any] = {}
    for name, (weight, bias) in caffe_arrays(classifier).items():
        arrays[f"{name}/w"], arrays[f"{name}/b"] = weight, bias
    np.savez(path, **arrays)


def write_keras_npz(path: Path, classifier: Classifier) -> None:
    """Kernels H,W,I,O; fc1 takes the cells of pool5 row by row, channels last."""
    arrays: dict[str, Any] = {}
    renamed = {"fc6": "fc1", "fc7": "fc2", "fc8": "predictions"}
    for name, (weight, bias) in caffe_arrays(classifier).items():
        if weight.ndim == 4:
            kernel = weight.transpose(2, 3, 1, 0)
            keras = f"block{name[4]}_conv{name[6]}"
        else:
            keras = renamed[name]
            if name == "fc6":
                weight = weight.reshape(FC, -1, 7, 7).transpose(0, 2, 3, 1).reshape(FC, -1)
            kernel = weight.T
        arrays[f"{keras}/kernel:0"], arrays[f"{keras}/bias:0"] = kernel, bias
    np.savez(path, **arrays)


def caffe_fcn() -> dict[str, list[np.ndarray]]:
    """The layers of an FCN's backbone as Caffe has them: fc6 and fc7 as convolutions."""
    blobs = {name: list(arrays) for name, arrays in caffe_arrays(Classifier()).items()}
    del blobs["fc8"]
    blobs["fc6"][0] = blobs["fc6"][0].reshape(FC, -1, 7, 7)
    blobs["fc7"][0] = blobs["fc7"][0].reshape(FC, FC, 1, 1)
    return blobs
