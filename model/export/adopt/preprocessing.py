"""How an adopted network wants its image: what the user says of it, and the same in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from model.export.adopt.options import AdoptError
from model.preprocessing import PREPROCESSING, Preprocessing, Triple

FloatArray = npt.NDArray[np.float32]

PRESETS: Final = {"imagenet": PREPROCESSING["torchvision"], **PREPROCESSING}


def chosen(
    preset: str | None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    scale: float | None = None,
    color_order: str | None = None,
) -> Preprocessing:
    """Takes a preset, or numbers; those that are left out do nothing. Raises: AdoptError."""
    numbers = {"mean": mean, "std": std, "scale": scale}
    given = {name: value for name, value in numbers.items() if value is not None}
    if preset is None and not given:
        raise AdoptError(
            "how does the network want its pixels? Say --preprocessing imagenet, unit, none or "
            "caffe, or --mean, --std and --scale"
        )
    if preset is not None and given:
        raise AdoptError(f"--preprocessing {preset} and --{next(iter(given))}: say one of the two")
    start = PRESETS[preset] if preset else Preprocessing()
    try:
        return Preprocessing(
            mean=_triple(mean) if mean is not None else start.mean,
            std=_triple(std) if std is not None else start.std,
            scale=start.scale if scale is None else scale,
            color_order=color_order or start.color_order,
        )
    except ValueError as error:
        raise AdoptError(str(error)) from error


def is_plain(preprocessing: Preprocessing) -> bool:
    """Tell whether values are taken as they are, in whichever order."""
    return preprocessing.factor_and_offset() == ((1.0,) * 3, (0.0,) * 3)


def preprocess(preprocessing: Preprocessing, values: FloatArray) -> FloatArray:
    """Turns float RGB [N,H,W,3] in 0..255 into float32 in the network's channel order."""
    ordered = values[..., ::-1] if preprocessing.color_order == "BGR" else values
    scaled = ordered * np.float32(preprocessing.scale)
    mean, std = (np.array(part, np.float32) for part in (preprocessing.mean, preprocessing.std))
    return np.asarray((scaled - mean) / std, np.float32)


def _triple(values: Sequence[float]) -> Triple:
    first, second, third = values
    return first, second, third
