"""Divides images into train, val and test: by lists, by patterns of their names, or at random."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from training.datasets.base import DatasetError
from training.datasets.format import read_ids


def by_lists(stems: Sequence[str], lists: Sequence[Path]) -> dict[str, str]:
    """Map stems to the list that names them, whose own stem is the split (`train.txt`).

    A line's first word counts, without folders and ending, so VOC's flat lists of image and mask
    will do, too. Raises: DatasetError if a list is unreadable, or two name an image.
    """
    splits: dict[str, str] = {}
    for path in lists:
        for line in read_ids(path):
            stem = Path(line.split()[0]).stem
            if splits.setdefault(stem, path.stem) != path.stem:
                raise DatasetError(f"{stem} is in {splits[stem]} and in {path.stem}: choose one")
    known = {stem: splits[stem] for stem in stems if stem in splits}
    if not known:
        raise DatasetError(f"{lists[0]} names none of the images, {stems[0]} for one")
    return known


def by_rules(stems: Sequence[str], rules: dict[str, str], seed: int) -> dict[str, str]:
    """Map every stem to a split: `rules` gives val and test a share (`0.2`) or a pattern of names
    (`film3_*`); the rest is train.

    Raises: DatasetError if a rule takes none, or nothing is left to learn from.
    """
    splits = dict.fromkeys(stems, "train")
    shuffled = [stems[index] for index in np.random.default_rng(seed).permutation(len(stems))]
    for split, rule in rules.items():
        left = [stem for stem in shuffled if splits[stem] == "train"]
        share = _share(rule)
        if share is None:
            chosen = [stem for stem in left if fnmatchcase(stem, rule)]
        else:
            chosen = left[: max(1, round(share * len(stems)))]
        if not chosen:
            raise DatasetError(f"--{split} {rule}: no image has such a name, {stems[0]} for one")
        splits |= dict.fromkeys(chosen, split)
    if "train" not in splits.values():
        raise DatasetError(f"{' and '.join(rules)} take all {len(stems)} images: none is for train")
    return splits


def _share(rule: str) -> float | None:
    """Read a share; None if the rule is a pattern. Raises: DatasetError."""
    try:
        share = float(rule)
    except ValueError:
        return None
    if not 0 < share < 1:
        raise DatasetError(f"{rule}: want a share between 0 and 1, as 0.2, or a pattern of names")
    return share
