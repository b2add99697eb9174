"""Pictures that hide the objects, their surroundings, or all but their outlines.

The paper's journal version (arXiv 1605.06211) asks what a network goes by: FCN-32s is trained or
tested on masked pictures. Its body is not among our sources, so what follows is RECALLED, not
checked: its mean IU without background (`foreground_mean_iu`) on PASCAL VOC, by what the picture
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

import numpy as np
import numpy.typing as npt

from training.datasets.base import VOID, Sample
from training.metrics import ScoreError, Scores

Colour = tuple[int, int, int]
"""RGB, 0..255."""

MEAN: Colour = (123, 117, 104)
"""Source: `voc-fcn8s/net.py` of shelhamer/fcn.berkeleyvision.org, rounded (there BGR)."""
_WHITE: Colour = (255, 255, 255)


def hide_foreground(sample: Sample, fill: Colour = MEAN, background: int = 0) -> Sample:
    """Only pixels labelled `background` keep their colour. The target stays as it is."""
    return _keep(sample, sample.target == background, fill)


def hide_background(sample: Sample, fill: Colour = MEAN, background: int = 0) -> Sample:
    """Only pixels of the other classes keep their colour. The target stays as it is."""
    return _keep(sample, (sample.target != background) & (sample.target != VOID), fill)


def shape(
    sample: Sample, foreground: Colour = _WHITE, rest: Colour = MEAN, background: int = 0
) -> Sample:
    """Both hidden, in two colours: where objects are, but not which. Void is coloured as `rest`.

    Raises: ValueError if the colours are the same, since then nothing would be seen.
    """
    if foreground == rest:
        raise ValueError(f"foreground and rest are both {rest}: no shape would be seen")
    objects = (sample.target != background) & (sample.target != VOID)
    colours = np.array([rest, foreground], np.uint8)
    return Sample(colours[objects.astype(np.intp)], sample.target)


def foreground_mean_iu(scores: Scores, background: int = 0) -> float:
    """Mean IU over the classes but `background`: masked, that one is given away.

    Raises: ScoreError if no other class was scored.
    """
    others = np.delete(scores.class_iu, background)
    if np.isnan(others).all():
        raise ScoreError("no class but the background was scored")
    return float(np.nanmean(others))


def _keep(sample: Sample, shown: npt.NDArray[np.bool_], fill: Colour) -> Sample:
    colour = np.array(fill, np.uint8)
    return Sample(np.where(shown[..., None], sample.image, colour), sample.target)
