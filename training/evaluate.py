"""Scores of any predictor on one split of a data set."""

from __future__ import annotations

from tqdm import tqdm

from training.datasets import SegmentationDataset
from training.metrics import Confusion
from training.predictors import Predictor


def evaluate(predict: Predictor, data: SegmentationDataset, *, progress: bool = True) -> Confusion:
    """The confusion matrix over the whole split, one image at a time at its own size."""
    confusion = Confusion(data.num_classes)
    for index in tqdm(range(len(data)), desc=data.split, unit="image", disable=not progress):
        sample = data[index]
        confusion.add(sample.target, predict(sample.image))
    return confusion
