"""Batch norms folded into the convolutions before them.

With its running statistics a batch norm is a factor and an addend for each channel, so the
convolution takes the one into its weights and the other into its bias, and computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from model.weights.layers import Layer, LayerWeights, Norm, WeightsError


def fold_norms(
    layers: LayerWeights, norms: Mapping[str, Norm], after: Mapping[str, str], eps: float
) -> LayerWeights:
    """Folds into float32. `after`: a norm's name -> that of the convolution it follows.

    Raises: WeightsError naming a norm that follows none, or whose length is not its channels.
    """
    folded = dict(layers)
    for name, norm in norms.items():
        layer = folded.get(after.get(name, ""))
        if layer is None:
            raise WeightsError(f"the batch norm {name} follows no convolution that is known here")
        if layer.weight.shape[0] != norm.mean.size:
            raise WeightsError(
                f"the batch norm {name} has {norm.mean.size} channels, {after[name]} "
                f"{layer.weight.shape[0]}"
            )
        folded[after[name]] = _folded(layer, norm, eps)
    return folded


def _folded(layer: Layer, norm: Norm, eps: float) -> Layer:
    factor = 1 / np.sqrt(norm.variance.astype(np.float64) + eps)
    if norm.scale is not None:
        factor = factor * norm.scale
    bias = -factor * norm.mean
    if layer.bias is not None:
        bias = bias + factor * layer.bias
    if norm.shift is not None:
        bias = bias + norm.shift
    weight = layer.weight * factor.reshape(-1, *(1,) * (layer.weight.ndim - 1))
    return layer._replace(weight=weight.astype(np.float32), bias=bias.astype(np.float32))
