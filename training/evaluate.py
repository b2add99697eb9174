"""Scores of any predictor on one split of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import torch
from tqdm import tqdm

from training.datasets import DatasetInfo, SegmentationDataset
from training.datasets.base import Pixels
from training.metrics import Confusion
from training.predictors import FilePredictor, Predictor
from training.ranks import ALONE, Ranks

Outcome = tuple[Pixels, Pixels]
"""Target and prediction of one image, both uint8 [H,W]."""


class EvaluationError(ValueError):
    """A predictor and a data set do not belong together, or an answer is no label map of it."""


def evaluate(
    predict: Predictor,
    data: SegmentationDataset,
    *,
    progress: bool = True,
    ranks: Ranks = ALONE,
) -> Confusion:
    """The confusion matrix over the whole split, one image at a time at its own size.

    Each process predicts its share of the images, no image twice; the matrices are summed once,
    and all get the sum. Raises: DatasetError, EvaluationError.
    """
    indices = ranks.share(range(len(data)))

    def outcome(index: int) -> Outcome:
        sample = data[index]
        return sample.target, predict(sample.image)

    return _tally(map(outcome, indices), indices, data, progress, ranks)


def evaluate_files(
    predict: FilePredictor,
    data: SegmentationDataset,
    *,
    in_flight: int = 4,
    progress: bool = True,
    ranks: Ranks = ALONE,
) -> Confusion:
    """As `evaluate`, but the predictor gets the image files and decodes them itself.

    `in_flight`: how many files are asked for at a time; `predict` is called from that many
    threads. Raises: DatasetError, EvaluationError, and what `predict` raises.
    """
    indices = ranks.share(range(len(data)))

    def outcome(index: int) -> Outcome:
        return data.target(index), predict(data.pairs[index][0])

    with ThreadPoolExecutor(in_flight) as pool:
        outcomes = _in_order(pool, outcome, indices, in_flight)
        return _tally(outcomes, indices, data, progress, ranks)


def check_classes(names: tuple[str, ...], source: str, info: DatasetInfo) -> None:
    """Raises EvaluationError unless class ids mean the same in the predictor and the data set."""
    wanted = tuple(entry.name for entry in info.classes)
    if names == wanted:
        return
    data = f"the data set {info.data.name!r}"
    if len(names) != len(wanted):
        counts = f"{source} has {len(names)} classes ({_few(names)}), {data} {len(wanted)}"
        raise EvaluationError(f"{counts} ({_few(wanted)}): give the class list it was trained on")
    index = next(i for i, pair in enumerate(zip(names, wanted, strict=True)) if len(set(pair)) > 1)
    raise EvaluationError(
        f"class {index} is {names[index]!r} for {source} but {wanted[index]!r} for {data}: give "
        "the class list it was trained on"
    )


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _tally(
    outcomes: Iterator[Outcome],
    indices: Sequence[int],
    data: SegmentationDataset,
    progress: bool,
    ranks: Ranks,
) -> Confusion:
    confusion = Confusion(data.info.head_sizes)
    shown = progress and ranks.first
    bar = tqdm(outcomes, data.split, len(indices), unit="image", disable=not shown)
    for index, (target, prediction) in zip(indices, bar, strict=True):
        image_path = data.pairs[index][0]
        if prediction.shape != target.shape:
            raise EvaluationError(
                f"{image_path}: the answer is {_size(prediction)} but the label is {_size(target)}"
            )
        confusion.add(target, prediction)
    confusion.counts = ranks.sum(torch.from_numpy(confusion.counts)).numpy()
    return confusion


def _size(label_map: Pixels) -> str:
    return "x".join(str(side) for side in label_map.shape)


def _in_order(
    pool: ThreadPoolExecutor,
    outcome: Callable[[int], Outcome],
    wanted: Sequence[int],
    in_flight: int,
) -> Iterator[Outcome]:
    """Results in the order of `wanted`. No more than `in_flight` are asked for ahead of the one
    that is due, so that a slow consumer does not fill the memory; on an error nothing more is
    asked for.
    """
    indices = iter(wanted)
    waiting: list[Future[Outcome]] = [
        pool.submit(outcome, index) for index in islice(indices, in_flight)
    ]
    try:
        while waiting:
            result = waiting.pop(0).result()
            waiting += [pool.submit(outcome, index) for index in islice(indices, 1)]
            yield result
    finally:
        for future in waiting:
            future.cancel()
