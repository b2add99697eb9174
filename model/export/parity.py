"""Proof that an exported file does what its network does."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from model.contract import Contract
from model.export.onnx_file import random_images, session
from model.heads import label_map
from model.network import SegmentationNetwork

PARITY_SIZES = ((1, 32, 32), (1, 97, 61), (2, 64, 129), (3, 45, 100), (1, 1, 1))
"""(N,H,W): square, odd, non-square, batched, and one pixel."""

LOGIT_TOLERANCE = 1e-3
"""Largest difference relative to the largest logit. Rounding differs with the order of sums;
1e-5 is known to be too tight (open-mmlab/mmsegmentation#136)."""

LABEL_AGREEMENT = 0.999
"""Share of equal labels. Ties within the rounding above may fall either way."""


class ExportError(ValueError):
    """The file was not written: it does not do what the network does, or cannot be made."""


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Compares ONNX Runtime with PyTorch on random images of `sizes`."""

    sizes: tuple[tuple[int, int, int], ...]
    largest_logit_difference: float | None
    """relative to the largest logit; None if the file gives labels only"""
    label_agreement: float
    """the worst size's share of equal labels"""
    classes: int
    """that the network finds there; one tells little where labels alone are compared"""


@torch.inference_mode()
def check_parity(
    network: SegmentationNetwork,
    contract: Contract,
    path: Path,
    sizes: Sequence[tuple[int, int, int]] = PARITY_SIZES,
) -> ParityReport:
    """Run the file in ONNX Runtime (CPU) and the network in PyTorch on the same images.

    Sides are raised to the contract's `min_side_px`. A file without a `logits` output is compared
    by its labels alone. Raises: ExportError if they differ by more than LOGIT_TOLERANCE or agree
    on fewer labels than LABEL_AGREEMENT.
    """
    opened = session(path)
    reference = copy.deepcopy(network).cpu().float().eval()
    random = np.random.default_rng(0)
    names = [contract.outputs.label_map]
    if contract.outputs.logits:
        names.append(contract.outputs.logits)
    smallest = contract.input.min_side_px
    checked = tuple((n, max(h, smallest), max(w, smallest)) for n, h, w in sizes)
    difference, agreement = 0.0, 1.0
    classes: set[int] = set()
    for size in checked:
        images = random_images(random, *size)
        wanted = reference(torch.from_numpy(images).permute(0, 3, 1, 2).float())
        got = opened.run(names, contract.feeds(images))
        if got[0].shape != size or got[0].dtype != np.uint8:
            raise ExportError(
                f"for uint8 {images.shape} the file gives {got[0].dtype} {got[0].shape}"
            )
        if contract.outputs.logits:
            scale = max(float(wanted.abs().max()), 1e-6)
            difference = max(difference, float(np.abs(got[1] - wanted.numpy()).max()) / scale)
        labels = label_map(wanted).numpy()
        classes.update(np.unique(labels).tolist())
        agreement = min(agreement, float((got[0] == labels).mean()))
    if not difference <= LOGIT_TOLERANCE or agreement < LABEL_AGREEMENT:
        raise ExportError(
            f"ONNX Runtime and PyTorch disagree: logits by {difference:.2e} (relative), labels "
            f"on {1 - agreement:.2%} of the pixels; nothing was written"
        )
    logits = difference if contract.outputs.logits else None
    return ParityReport(checked, logits, agreement, len(classes))
