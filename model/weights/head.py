"""The layers of the authors' released FCN files that follow the backbone.

A net with two heads, SIFT Flow's, has each layer twice, with `_sem` or `_geo` at the end of its
name. A net of two streams has score_frcolor and score_frhha and averages them.
Source: net.py of voc-fcn*, nyud-fcn32s-*, siftflow-fcn* and pascalcontext-fcn* in
shelhamer/fcn.berkeleyvision.org.
"""

from __future__ import annotations

import numpy as np

from model.fcn import Variant
from model.heads import layer_name
from model.modality import Modality
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

STREAMS = ("color", "hha")
"""Ends of the layers' names in late fusion."""
HEADS = ("", "sem", "geo")

HEAD_LAYERS = frozenset(
    {
        *(
            layer_name(name, head)
            for head in HEADS
            for name in (
                *SCORES["8s"],
                *_INNER["8s"],
                *_SCALES,
                *(name for layers in _LAST.values() for name in layers),
            )
        ),
        *(f"score_fr{stream}" for stream in STREAMS),
    }
)
_TOLERANCE = 1e-3
"""Largest difference in a kernel whose largest value is near 1."""


def heads_of(layers: LayerWeights) -> tuple[str, ...]:
    """List the heads of the file's net: `sem` and `geo`, or an only one without a name."""
    named = tuple(head for head in HEADS if head and layer_name("score_fr", head) in layers)
    return named or ("",)


def modality_of(layers: LayerWeights) -> Modality:
    """Tell what the file's net was given, as far as its layers do: one for HHA looks like one for
    colour."""
    if "conv1_1_bgrd" in layers:
        return "rgbd"
    return "rgb-hha" if f"conv1_1{STREAMS[0]}" in layers else "rgb"


def check_variant(layers: LayerWeights, variant: Variant, heads: tuple[str, ...] = ("",)) -> None:
    """Raises: WeightsError if the file's last upsampling is that of another variant."""
    for other, last in _LAST.items():
        found = [name for head in heads for name in last if layer_name(name, head) in layers]
        if other != variant and found:
            raise WeightsError(
                f"the file holds an FCN-{other} ({found[0]}), not FCN-{variant}: say --head {other}"
            )


def fold_scales(layers: LayerWeights) -> tuple[LayerWeights, dict[str, str]]:
    """Leave out the layers that scale a pool: the score's weights take the scale, which gives the
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


def upsampling_of(
    layers: LayerWeights,
    variant: Variant,
    odd_kernels: bool = False,
    heads: tuple[str, ...] = ("",),
) -> Upsampling:
    """Says `fixed` if the file's inner upsamplings are bilinear, or absent; else `learned`.

    `odd_kernels`: that of an upsampling by f is 2f - 1 wide, as in FCN-AlexNet; else 2f.
    Raises: WeightsError if the last one is not bilinear.
    """
    for name, factor in _of_heads(_LAST[variant], heads):
        if name in layers and not _is_bilinear(layers[name], 2 * factor - odd_kernels):
            raise WeightsError(
                f"{name} is not bilinear upsampling by {factor}, kernel "
                f"{2 * factor - odd_kernels}: the last upsampling is fixed"
            )
    fixed = all(
        _is_bilinear(layers[name], 2 * factor - odd_kernels)
        for name, factor in _of_heads(_INNER[variant], heads)
        if name in layers
    )
    return "fixed" if fixed else "learned"


def needed_layers(
    variant: Variant, upsampling: Upsampling, heads: tuple[str, ...], modality: Modality
) -> dict[str, str]:
    """Maps the file's layers that fill a network's heads to the paths of their modules."""
    names = [*SCORES[variant], *(_INNER[variant] if upsampling == "learned" else ())]
    needed = {name: name for head in heads for name in (layer_name(n, head) for n in names)}
    if modality == "rgb-hha":
        for score in SCORES[variant]:
            del needed[score]
            needed |= {f"{score}{stream}": f"{score}.{stream}" for stream in STREAMS}
    return needed


def _of_heads(factors: dict[str, int], heads: tuple[str, ...]) -> list[tuple[str, int]]:
    return [(layer_name(name, head), factor) for head in heads for name, factor in factors.items()]


def _is_bilinear(layer: Layer, kernel_size: int) -> bool:
    """Tell whether [C,C,k,k] is the bilinear kernel on the diagonal and zero elsewhere (or
    [C,1,k,k] the kernel, with a group for each channel)."""
    weight = layer.weight
    if layer.bias is not None or weight.ndim != 4:
        return False
    kernel = bilinear_kernel(kernel_size).numpy()
    classes, per_group = weight.shape[:2]
    if weight.shape[2:] != kernel.shape or per_group not in (1, classes):
        return False
    wanted = np.multiply.outer(np.ones((classes, 1)) if per_group == 1 else np.eye(classes), kernel)
    return bool(np.allclose(weight, wanted, rtol=0, atol=_TOLERANCE))
