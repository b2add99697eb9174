"""Separates several labellings of one image by one network, as the two of SIFT Flow.

Each head has score layers of its own over one backbone (arXiv 1411.4038, section 5).

The logits of all heads lie one after the other in the channels of one tensor, so a network with one
head, which is the ordinary case, is the same with a list of one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

HeadSizes = Mapping[str, int]
"""Number of classes by name of the head, in the order of the logits. An only head is named ""."""

Classes = int | HeadSizes
"""A number is that of an only head."""


def head_sizes(classes: Classes) -> dict[str, int]:
    return {"": classes} if isinstance(classes, int) else dict(classes)


def layer_name(layer: str, head: str) -> str:
    """Name a head's layer as the authors did: `score_fr` of head `sem` is `score_fr_sem`.

    Source: `siftflow-fcn8s/net.py` of shelhamer/fcn.berkeleyvision.org.
    """
    return f"{layer}_{head}" if head else layer


def split(logits: Tensor, sizes: HeadSizes) -> dict[str, Tensor]:
    """Split the logits of all heads, float [N,C,H,W], into [N,c,H,W] of each, as views."""
    return dict(zip(sizes, torch.split(logits, list(sizes.values()), dim=1), strict=True))


def label_maps(logits: Tensor, sizes: HeadSizes) -> Tensor:
    """Turn logits, float [N,C,H,W], into class ids, uint8 [N,H,W]; of K > 1 heads [N,H,W,K], each
    counting its own classes from 0."""
    maps = [each.argmax(dim=1).to(torch.uint8) for each in split(logits, sizes).values()]
    return maps[0] if len(maps) == 1 else torch.stack(maps, dim=-1)


def label_map(logits: Tensor) -> Tensor:
    """Turn logits, float [N,C,...], into class ids, uint8 [N,...]."""
    return logits.argmax(dim=1).to(torch.uint8)
