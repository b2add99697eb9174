"""The layers of the authors' released FCN files that follow the backbone.

Source: voc-fcn32s, voc-fcn16s, voc-fcn8s and voc-fcn8s-atonce/net.py of
shelhamer/fcn.berkeleyvision.org.
"""

from __future__ import annotations

import numpy as np

from model.fcn import Variant
from model.upsample import Upsampling, bilinear_kernel
from model.weights.layers import Layer, LayerWeights, WeightsError

SCORES: dict[Variant, tuple[str, ...]] = {
    "32s": ("score_fr",),
    "16s": ("score_fr", "score_pool4"),
    "8s": ("score_fr", "score_pool4", "score_pool3"),
}
_INNER: dict[Variant, dict[str, int]] = {
    "32s": {},
    "16s": {"upscore2": 2},
    "8s": {"upscore2": 2, "upscore_pool4": 2},
}
_LAST: dict[Variant, dict[str, int]] = {
    "32s": {"upscore": 32},
    "16s": {"upscore16": 16},
    "8s": {"upscore8": 8},
}
_SCALES = {"scale_pool4": "score_pool4", "scale_pool3": "score_pool3"}
"""Layers of the net trained at once that scale a pool by a constant before its score."""

HEAD_LAYERS = frozenset(
    {
        *SCORES["8s"],
        *_INNER["8s"],
        *_SCALES,
        *(name for layers in _LAST.values() for name in layers),
    }
)
_TOLERANCE = 1e-3
"""Of a kernel whose largest value is near 1."""


def check_variant(layers: LayerWeights, variant: Variant) -> None:
    """Raises: WeightsError if the file's last upsampling is that of another variant."""
    for other, last in _LAST.items():
        if other != variant and (found := [name for name in last if name in layers]):
            raise WeightsError(
                f"the file holds an FCN-{other} ({found[0]}), not FCN-{variant}: say --head {other}"
            )


def fold_scales(layers: LayerWeights) -> tuple[LayerWeights, dict[str, str]]:
    """Without the layers that scale a pool: the score's weights take the scale, which gives the
    same scores. And which went where. Raises: WeightsError.
    """
    folded = dict(layers)
    into: dict[str, str] = {}
    for scale_name, score_name in _SCALES.items():
        scale, score = folded.pop(scale_name, None), folded.get(score_name)
        if scale is None or score is None:
            continue
        weight = score.weight
        if scale.bias is not None or weight.ndim != 4 or scale.weight.shape != weight.shape[1:2]:
            raise WeightsError(
                f"{scale_name} has shape {scale.weight.shape}: want a factor for each of the "
                f"inputs of {score_name}, {weight.shape}"
            )
        folded[score_name] = score._replace(weight=weight * scale.weight[None, :, None, None])
        into[scale_name] = score_name
    return folded, into


def upsampling_of(layers: LayerWeights, variant: Variant, odd_kernels: bool = False) -> Upsampling:
    """`fixed` if the file's inner upsamplings are bilinear, or absent; else `learned`.

    `odd_kernels`: that of an upsampling by f is 2f - 1 wide, as in FCN-AlexNet; else 2f.
    Raises: WeightsError if the last one is not bilinear.
    """
    for name, factor in _LAST[variant].items():
        if name in layers and not _is_bilinear(layers[name], 2 * factor - odd_kernels):
            raise WeightsError(
                f"{name} is not bilinear upsampling by {factor}, kernel "
                f"{2 * factor - odd_kernels}: the last upsampling is fixed"
            )
    fixed = all(
        _is_bilinear(layers[name], 2 * factor - odd_kernels)
        for name, factor in _INNER[variant].items()
        if name in layers
    )
    return "fixed" if fixed else "learned"


def inner_upsamplings(variant: Variant) -> tuple[str, ...]:
    return tuple(_INNER[variant])


def _is_bilinear(layer: Layer, kernel_size: int) -> bool:
    """Whether [C,C,k,k] is the bilinear kernel on the diagonal and zero elsewhere (or [C,1,k,k] the
    kernel, with a group for each channel)."""
    weight = layer.weight
    if layer.bias is not None or weight.ndim != 4:
        return False
    kernel = bilinear_kernel(kernel_size).numpy()
    classes, per_group = weight.shape[:2]
    if weight.shape[2:] != kernel.shape or per_group not in (1, classes):
        return False
    wanted = np.multiply.outer(np.ones((classes, 1)) if per_group == 1 else np.eye(classes), kernel)
    return bool(np.allclose(weight, wanted, rtol=0, atol=_TOLERANCE))
