"""Counts which classes a split's labels hold: a class without a pixel cannot be learned, and its
score says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from training.datasets.base import VOID, DatasetError, SegmentationDataset, UInt8Array

_ENOUGH = 2000
"""Labels after which a class counts as absent: to read all of a large data set takes minutes."""


def few(names: Sequence[str], count: int = 8) -> str:
    """List the first names."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


class Coverage:
    """Counts the pixels of each class, head by head, and of void."""

    def __init__(self, data: SegmentationDataset) -> None:
        self.split = data.split
        self._total = len(data)
        self.class_names = data.info.class_names
        self.counts: npt.NDArray[np.int64] = np.zeros((len(self.class_names), 256), np.int64)
        self.labels = 0
        """Labels counted."""
        self.empty = 0
        """Those of them without a labelled pixel."""

    def add(self, target: UInt8Array) -> None:
        """Count one target, as `Sample` has it."""
        heads = target.reshape(-1, len(self.class_names)).T
        counts = np.stack([np.bincount(head, minlength=256) for head in heads])
        self.counts += counts
        self.labels += 1
        self.empty += not counts[:, :VOID].any()

    @classmethod
    def of(cls, data: SegmentationDataset, *, progress: bool = False) -> Self:
        """Read labels until every class was seen, at most as many as tell enough.

        Raises: DatasetError, also if no pixel at all is labelled.
        """
        coverage = cls(data)
        # Not in order: that of the names often is that of the scenes.
        order = np.random.default_rng(0).permutation(len(data)).tolist()
        bar = tqdm(
            order, f"labels of {data.split}", unit="label", delay=2, leave=False,
            disable=not progress,
        )  # fmt: skip
        for index in bar:
            coverage.add(data.target(index))
            if not coverage.absent or (coverage.labels >= _ENOUGH and coverage.labelled):
                break
        if not coverage.labelled:
            raise DatasetError(coverage.nothing)
        return coverage

    @property
    def is_whole(self) -> bool:
        """Tell whether every label of the split was counted."""
        return self.labels == self._total

    @property
    def labelled(self) -> int:
        """Count the pixels that have a class."""
        return int(self.counts[:, :VOID].sum())

    @property
    def void(self) -> float:
        """Give void's share of all pixels."""
        return float(self.counts[:, VOID].sum() / max(1, self.counts.sum()))

    @property
    def shares(self) -> dict[str, float]:
        """Give each class's share of the labelled pixels, by name; of several heads `head/name`."""
        shares: dict[str, float] = {}
        for counts, (head, names) in zip(self.counts, self.class_names.items(), strict=True):
            total = max(1, int(counts[:VOID].sum()))
            prefix = f"{head}/" if len(self.class_names) > 1 else ""
            shares |= {
                prefix + name: float(count / total)
                for name, count in zip(names, counts, strict=False)
            }
        return shares

    @property
    def absent(self) -> list[str]:
        """List the classes without a pixel."""
        return [name for name, share in self.shares.items() if not share]

    @property
    def nothing(self) -> str:
        """Says that every pixel is void, and what to do."""
        return (
            f"split {self.split!r} has no labelled pixel: every pixel of its {self.labels} labels "
            f"is {VOID}, void. Is {VOID} meant as a class? Then give the masks its id"
        )

    @property
    def warning(self) -> str:
        """Says which classes have no pixel, and asks what may be meant; empty if all have some."""
        absent = self.absent
        if not absent and len(self.shares) == 1:
            return (
                f"every labelled pixel of split {self.split!r} is {next(iter(self.shares))}, the "
                "only class: there is nothing to tell it from, unless the class list names the rest"
            )
        if not absent:
            return ""
        of = f"{len(absent)} of {len(self.shares)} classes"
        text = f"split {self.split!r} has no pixel of {few(absent)} ({of}, in {self.labels} labels)"
        if len(self.class_names) == 1 and self.void and not self.counts[0, 1:VOID].any():
            second = next(iter(self.class_names.values()))[1]
            text += (
                f". Its masks hold 0 and {VOID}, and {VOID} is void: is it meant as {second!r}? "
                f"Then make it 1, see 'Masks of 0 and {VOID}' in docs/training.md"
            )
        return text
