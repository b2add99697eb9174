"""Preprocessing: one table for networks trained here and those that are adopted."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Final

import torch
from torch import Tensor, nn

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Makes a channel (value * scale - mean) / std, of a value in 0..255.

    `mean` and `std` are in the order in which the network takes its channels, `color_order`, "RGB"
    or "BGR". Raises: ValueError.
    """

    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    scale: float = 1.0
    color_order: str = "RGB"

    def __post_init__(self) -> None:
        if not all(isfinite(v) for v in (*self.mean, *self.std, self.scale)):
            raise ValueError("mean, std and scale must be finite numbers")
        if min(self.std) <= 0 or self.scale <= 0:
            raise ValueError("std and scale must be above 0")
        if self.color_order not in ("RGB", "BGR"):
            raise ValueError(f"color order {self.color_order!r}: want RGB or BGR")

    def factor_and_offset(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Gives factors and offsets of the same: value * factor + offset, a channel each."""
        pairs = list(zip(self.mean, self.std, strict=True))
        return tuple(self.scale / std for _, std in pairs), tuple(-m / std for m, std in pairs)


PREPROCESSING: Final = {
    # Source: `voc-fcn8s/net.py` of shelhamer/fcn.berkeleyvision.org.
    "caffe": Preprocessing((104.00699, 116.66877, 122.67892), color_order="BGR"),
    # Source: torchvision, `VGG16_Weights.IMAGENET1K_V1.transforms`.
    "torchvision": Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255),
    # Source: `nyud_layers.py` and `siftflow_layers.py` of shelhamer/fcn.berkeleyvision.org.
    "nyudv2": Preprocessing((116.190, 97.203, 92.318), color_order="BGR"),
    "siftflow": Preprocessing((114.578, 115.294, 108.353), color_order="BGR"),
    # Source: `MobileNet` of keras.applications, in -1..1.
    "tensorflow": Preprocessing((128.0,) * 3, (128.0,) * 3),
    # Source: `efficientnet_lite_builder.py` of tensorflow/tpu.
    "lite": Preprocessing((127.0,) * 3, (128.0,) * 3),
    "unit": Preprocessing(scale=1 / 255),
    "none": Preprocessing(),
}
"""Presets by name. The means of `nyudv2` and `siftflow` are those of the data sets that the
authors' nets were trained on; these take weights learned with `caffe`."""


class Preprocess(nn.Module):
    """Turns float [N,3,H,W] RGB in 0..255 into what the first layer was trained on."""

    mean: Tensor | float
    std: Tensor | float

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.flip = preprocessing.color_order == "BGR"
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            scaled = [value / preprocessing.scale for value in values]
            if len(set(scaled)) == 1:
                # One number: an int8 file then takes the pixels as they are (`take_pixels`).
                setattr(self, name, scaled[0])
            else:
                rgb = torch.tensor(scaled[::-1] if self.flip else scaled).view(1, 3, 1, 1)
                self.register_buffer(name, rgb, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        values = images if isinstance(self.mean, float) and self.mean == 0 else images - self.mean
        values = values if isinstance(self.std, float) and self.std == 1 else values / self.std
        return values.flip(1) if self.flip else values
