"""Scores ground truth at a lower resolution against itself, which bounds coarse answers.

The paper's appendix A scores ground truth that was down- and then upsampled by a factor, to bound
what a network of that output stride can reach. How it resampled the labels is not known here: its
appendix was not at hand. Here a cell of `factor` x `factor` pixels has one class, and upsampling
gives that class to all of them:

`majority`  the class most of the cell's labelled pixels have, the lowest id of equals: no constant
            answer gets more of them right, so its pixel accuracy is the bound;
`nearest`   the class of the pixel at the cell's middle, as images of labels are usually resized;
            where that pixel is void, the majority.

Cells lie as in the 'same' networks: ceil(H / factor) x ceil(W / factor) of them from the top left.
Neither bounds the mean IU strictly: a majority that drowns small objects lowers the IU of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from training.datasets import DatasetError, SegmentationDataset
from training.datasets.base import UInt8Array
from training.evaluation.metrics import Absent, Confusion

Method = Literal["majority", "nearest"]

PAPER_MEAN_IU = {128: 50.9, 64: 73.3, 32: 86.1, 16: 92.8, 8: 96.4, 4: 98.5}
"""Percent, on PASCAL VOC 2011 val. Source: arXiv 1411.4038, appendix A."""


def coarsened(
    target: UInt8Array, factor: int, num_classes: int, method: Method = "majority"
) -> UInt8Array:
    """Resample down and up by `factor`: uint8 [H,W] with void becomes uint8 [H,W] without.

    A cell without a labelled pixel gets class 0, which is scored nowhere.
    Raises: ValueError if `factor` < 1.
    """
    if factor < 1:
        raise ValueError(f"factor {factor}: want 1 or more")
    height, width = target.shape
    rows, columns = -(-height // factor), -(-width // factor)
    cells = np.empty((rows, columns), np.uint8)
    column_of = np.arange(width) // factor
    # A row of cells at a time: all counts of a large label map at once would not fit the memory.
    for row in range(rows):
        band = target[row * factor : (row + 1) * factor]
        labelled = band < num_classes
        keys = np.broadcast_to(column_of, band.shape)[labelled] * num_classes + band[labelled]
        counts = np.bincount(keys, minlength=columns * num_classes)
        cells[row] = counts.reshape(columns, num_classes).argmax(axis=1)
    if method == "nearest":
        middle_rows = np.minimum(np.arange(rows) * factor + factor // 2, height - 1)
        middle_columns = np.minimum(np.arange(columns) * factor + factor // 2, width - 1)
        middle = target[np.ix_(middle_rows, middle_columns)]
        cells = np.where(middle < num_classes, middle, cells)
    return cells.repeat(factor, axis=0).repeat(factor, axis=1)[:height, :width]


def upper_bounds(
    data: SegmentationDataset,
    factors: Sequence[int],
    method: Method = "majority",
    *,
    progress: bool = True,
) -> dict[int, Confusion]:
    """Count over the whole split, for each factor. Reads labels only, each once.

    Raises: DatasetError, also if there are several labellings; ValueError if a factor is < 1.
    """
    if len(data.info.heads) > 1:
        raise DatasetError(
            f"{data.info.data.name} has several labellings: take the data set of one of them, as "
            "siftflow or siftflow_geometric"
        )
    found = {factor: Confusion(data.num_classes) for factor in factors}
    for index in tqdm(range(len(data)), data.split, unit="label", disable=not progress):
        target = data.target(index)
        for factor, confusion in found.items():
            confusion.add(target, coarsened(target, factor, data.num_classes, method))
    return found


@dataclass(frozen=True, slots=True)
class UpperBoundReport:
    """Holds the bounds for a reader, and for a program."""

    data: SegmentationDataset
    method: Method
    absent: Absent
    confusions: dict[int, Confusion]

    def to_dict(self) -> dict[str, Any]:
        """Make it ready for JSON; shares in 0..1."""
        return {
            "dataset": self.data.info.data.name,
            "split": self.data.split,
            "images": len(self.data),
            "method": self.method,
            "absent": self.absent,
            "factors": [
                {"factor": factor, **confusion.to_dict(self.data.info.class_names, self.absent)}
                for factor, confusion in self.confusions.items()
            ],
        }

    def table(self) -> str:
        """Format the mean IU per factor beside the paper's, in percent."""
        lines = [
            f"ground truth of {self.data.info.data.name}, {self.data.split}: {len(self.data)} "
            f"images, down- and upsampled ({self.method})",
            "",
            "factor  mean IU [%]  paper, VOC2011 val [%]",
        ]
        for factor, confusion in self.confusions.items():
            mean_iu = 100 * confusion.scores(self.absent).mean_iu
            paper = f"{PAPER_MEAN_IU[factor]:.1f}" if factor in PAPER_MEAN_IU else "-"
            lines.append(f"{factor:>6}  {mean_iu:>11.2f}  {paper:>22}")
        return "\n".join(lines)
