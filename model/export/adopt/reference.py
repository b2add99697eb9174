"""The right answers of an adopted file, computed by torch and numpy around the network as given."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional

from model.export.adopt.options import AdoptOptions
from model.export.adopt.original import Original
from model.export.adopt.preprocessing import FloatArray, preprocess
from model.export.adopt.probe import Probed
from model.export.onnx_file import UInt8Array

_TINY = np.float32(1e-30)


def reference(
    original: Original, probed: Probed, options: AdoptOptions, images: UInt8Array
) -> tuple[UInt8Array, FloatArray | None]:
    """Gives labels uint8 [N,H,W] and probabilities [N,C,H,W] of uint8 RGB [N,H,W,3]; a network of
    labels has no probabilities.

    Image by image, so that a network which mixes those of a batch is found out. Probabilities,
    rather than the logits that are served: a softmax of these has to give what the network says.
    """
    pairs = [_one(original, probed, options, image) for image in images]
    labels = np.stack([labels for labels, _ in pairs])
    shares = [shares for _, shares in pairs if shares is not None]
    return labels, np.stack(shares) if shares else None


def _one(
    original: Original, probed: Probed, options: AdoptOptions, image: UInt8Array
) -> tuple[UInt8Array, FloatArray | None]:
    height, width = image.shape[:2]
    output = probed.output
    values = image.astype(np.float32)
    if probed.size:
        values = fit(values, probed.size, options.antialias)
    (raw,) = original.run(preprocess(options.preprocessing, values[None]))
    if output.kind == "label_map":
        plane = raw if output.axis is None else raw.squeeze(output.axis - 1)
        return nearest(plane, (height, width)).astype(np.uint8), None
    scores = raw[None] if output.axis is None else np.moveaxis(raw, output.axis - 1, 0)
    scores = bilinear(scores.astype(np.float32), (height, width), options.align_corners)
    if output.kind == "scores":
        return (
            scores.argmax(axis=0).astype(np.uint8),
            scores if output.meaning == "probabilities" else softmax(scores),
        )
    (score,) = scores
    above = np.float32(output.threshold)
    if output.meaning == "probabilities":
        # The odds that the threshold asks for count as even ones.
        odds = np.stack([(1 - score) * above, score * (1 - above)])
        shares = odds / np.maximum(odds.sum(axis=0), _TINY)
    else:
        shares = softmax(np.stack([np.full_like(score, above), score]))
    return (score > above).astype(np.uint8), shares


def softmax(scores: FloatArray) -> FloatArray:
    """Computes probabilities over the first axis of [C,H,W]."""
    powers = np.exp(scores - scores.max(axis=0, keepdims=True))
    return np.asarray(powers / powers.sum(axis=0, keepdims=True), np.float32)


def fit(values: FloatArray, size: tuple[int, int], antialias: bool) -> FloatArray:
    """Resizes float [H,W,3] to [h,w,3], half-pixel bilinear; with `antialias` by Pillow."""
    if not antialias:
        return bilinear(values.transpose(2, 0, 1), size, align_corners=False).transpose(1, 2, 0)
    planes = [Image.fromarray(np.ascontiguousarray(values[..., c])) for c in range(3)]
    resample = Image.Resampling.BILINEAR
    return np.stack([np.asarray(p.resize(size[::-1], resample)) for p in planes], axis=-1)


def bilinear(planes: FloatArray, size: tuple[int, int], align_corners: bool) -> FloatArray:
    """Resizes float [C,h,w] to [C,H,W], edges repeated."""
    batch = torch.from_numpy(np.ascontiguousarray(planes))[None]
    resized = functional.interpolate(batch, size, mode="bilinear", align_corners=align_corners)
    return np.asarray(resized[0].numpy())


def nearest(plane: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Resizes [h,w] to [H,W]: the cell whose middle is nearest, the first of two as near."""
    for axis, wanted in enumerate(size):
        given = plane.shape[axis]
        places = (np.arange(wanted) + 0.5) * given / wanted - 0.5
        index = np.ceil(places - 0.5).astype(np.int64).clip(0, given - 1)
        plane = plane.take(index, axis=axis)
    return plane
