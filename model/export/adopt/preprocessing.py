"""How a network wants its picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Final

import numpy as np
import numpy.typing as npt

from model.export.adopt.errors import AdoptError

FloatArray = npt.NDArray[np.float32]
Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """A channel is (value * scale - mean) / std of a value in 0..255.

    `mean` and `std` are in the order in which the network takes its channels, `color_order`, "RGB"
    or "BGR". Raises: AdoptError.
    """

    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    scale: float = 1.0
    color_order: str = "RGB"

    def __post_init__(self) -> None:
        if not all(isfinite(v) for v in (*self.mean, *self.std, self.scale)):
            raise AdoptError("mean, std and scale must be finite numbers")
        if min(self.std) <= 0 or self.scale <= 0:
            raise AdoptError("std and scale must be above 0")
        if self.color_order not in ("RGB", "BGR"):
            raise AdoptError(f"color order {self.color_order!r}: want RGB or BGR")

    @classmethod
    def chosen(
        cls,
        preset: str | None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scale: float | None = None,
        color_order: str | None = None,
    ) -> Preprocessing:
        """A preset, or numbers, of which those that are left out do nothing. Raises: AdoptError."""
        numbers = {"mean": mean, "std": std, "scale": scale}
        given = {name: value for name, value in numbers.items() if value is not None}
        if preset is None and not given:
            raise AdoptError(
                "how does the network want its pixels? Say --normalise "
                f"{', '.join(PRESETS)}, or --mean, --std and --scale"
            )
        if preset is not None and given:
            raise AdoptError(f"--normalise {preset} and --{next(iter(given))}: say one of the two")
        start = PRESETS[preset] if preset else cls()
        return cls(
            mean=_triple(mean) if mean is not None else start.mean,
            std=_triple(std) if std is not None else start.std,
            scale=start.scale if scale is None else scale,
            color_order=color_order or start.color_order,
        )

    @property
    def plain(self) -> bool:
        """Whether values are taken as they are, in whichever order."""
        return self.factor_and_offset() == ((1.0,) * 3, (0.0,) * 3)

    def factor_and_offset(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """value * factor + offset, a channel each."""
        pairs = list(zip(self.mean, self.std, strict=True))
        return tuple(self.scale / std for _, std in pairs), tuple(-m / std for m, std in pairs)

    def normalise(self, values: FloatArray) -> FloatArray:
        """Float RGB [N,H,W,3] in 0..255 -> float32 [N,H,W,3] in the network's channel order."""
        ordered = values[..., ::-1] if self.color_order == "BGR" else values
        scaled = ordered * np.float32(self.scale)
        mean, std = (np.array(part, np.float32) for part in (self.mean, self.std))
        return np.asarray((scaled - mean) / std, np.float32)


def _triple(values: Sequence[float]) -> Triple:
    first, second, third = values
    return first, second, third


PRESETS: Final = {
    # Source: torchvision.transforms.v2.Normalize as in the docs of torchvision.models.
    "imagenet": Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255),
    "unit": Preprocessing(scale=1 / 255),
    "none": Preprocessing(),
    # Source: infer.py of shelhamer/fcn.berkeleyvision.org.
    "caffe": Preprocessing((104.00698793, 116.66876762, 122.67891434), color_order="BGR"),
}
