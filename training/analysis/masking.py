"""Images that hide the objects, their surroundings, or all but their outlines.

The paper's journal version (arXiv 1605.06211) asks what a network goes by: FCN-32s is trained or
tested on masked images. Its body is not among our sources, so what follows is RECALLED, not
checked: its mean IU without background (`foreground_mean_iu`) on PASCAL VOC, by what the image
still shows, is 84.8 for both; trained on both and tested on the foreground alone 81.0, on the
background alone 19.8; trained and tested on the foreground alone 76.1, on the background alone
37.8, on shapes 29.1. (Our notes could be read as 81.0 and 19.8 the other way round; then objects
would be known better by their surroundings, against the next two.) Which colours hid things is not
known to us either; here a fill is one colour, ImageNet's mean unless said otherwise, since that is
0 for a network that subtracts it.

Foreground is every class but `background`. Void pixels (VOC's outlines) are on neither side: both
masks hide them, so that nothing of what was hidden shows along its border.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from training.datasets.base import VOID, DatasetError, Sample, SegmentationDataset, UInt8Array
from training.evaluation.metrics import ScoreError, Scores

Mask = Literal["all", "foreground", "background", "shape"]
"""The pixels of an image that are kept: `foreground` hides the background, and so on; `shape`
hides both, in two colours."""

BACKGROUND = "background"
"""The class that is nobody's object, by the name that class lists give it."""

Colour = tuple[int, int, int]
"""RGB, 0..255."""

MEAN: Colour = (123, 117, 104)
"""Source: `voc-fcn8s/net.py` of shelhamer/fcn.berkeleyvision.org, rounded (there BGR)."""
_WHITE: Colour = (255, 255, 255)


def hide_foreground(sample: Sample, fill: Colour = MEAN, background: int = 0) -> Sample:
    """Hide all pixels but those labelled `background`. The target stays as it is."""
    return _keep(sample, sample.target == background, fill)


def hide_background(sample: Sample, fill: Colour = MEAN, background: int = 0) -> Sample:
    """Hide all pixels but those of the other classes. The target stays as it is."""
    return _keep(sample, (sample.target != background) & (sample.target != VOID), fill)


def shape(
    sample: Sample, foreground: Colour = _WHITE, rest: Colour = MEAN, background: int = 0
) -> Sample:
    """Hide both, in two colours: this shows where objects are, but not which. Void gets `rest`.

    Raises: ValueError if the colours are the same, since then nothing would be seen.
    """
    if foreground == rest:
        raise ValueError(f"foreground and rest are both {rest}: no shape would be seen")
    objects = (sample.target != background) & (sample.target != VOID)
    colours = np.array([rest, foreground], np.uint8)
    return Sample(colours[objects.astype(np.intp)], sample.target)


def foreground_mean_iu(scores: Scores, background: int = 0) -> float:
    """Average the IU over all classes but `background`, which a mask gives away.

    Raises: ScoreError if no other class was scored.
    """
    others = np.delete(scores.class_iu, background)
    if np.isnan(others).all():
        raise ScoreError("no class but the background was scored")
    return float(np.nanmean(others))


def mask_images(data: SegmentationDataset, mask: Mask) -> SegmentationDataset:
    """Keep only the pixels of `mask` in the images of `data`; `all` is `data` itself.

    Raises: DatasetError if masks are wanted and no class is called `background`.
    """
    if mask == "all":
        return data
    background = background_class(data)
    if background is None:
        raise DatasetError(
            f"{data.info.data.name!r} has no class {BACKGROUND!r}, which tells objects from the "
            f"rest: leave out the mask ({mask})"
        )
    return _Masked(data, mask, background)


def background_class(data: SegmentationDataset) -> int | None:
    """Find the id of the class called `background`, None if there is none."""
    names = [info.name for info in data.info.classes]
    return names.index(BACKGROUND) if BACKGROUND in names else None


class _Masked(SegmentationDataset):
    """Masks images; targets, files and classes are those of the data set behind it."""

    def __init__(self, data: SegmentationDataset, mask: Mask, background: int) -> None:
        super().__init__(data.info, data.pairs, data.split)
        self._data, self._mask, self._background = data, mask, background

    def __getitem__(self, index: int) -> Sample:
        sample = self._data[index]
        if self._mask == "foreground":
            return hide_background(sample, background=self._background)
        if self._mask == "background":
            return hide_foreground(sample, background=self._background)
        return shape(sample, background=self._background)

    def read_target(self, path: Path) -> UInt8Array:
        return self._data.read_target(path)


def _keep(sample: Sample, kept: npt.NDArray[np.bool_], fill: Colour) -> Sample:
    colour = np.array(fill, np.uint8)
    return Sample(np.where(kept[..., None], sample.image, colour), sample.target)
