"""Scores of any predictor on one split of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from tqdm import tqdm

from training.datasets import DatasetInfo, SegmentationDataset
from training.datasets.base import Pixels
from training.metrics import Confusion
from training.predictors import FilePredictor, Predictor

Outcome = tuple[Pixels, Pixels]
"""Target and prediction of one image, both uint8 [H,W]."""


class EvaluationError(ValueError):
    """A predictor and a data set do not belong together, or an answer is no label map of it."""


def evaluate(predict: Predictor, data: SegmentationDataset, *, progress: bool = True) -> Confusion:
    """The confusion matrix over the whole split, one image at a time at its own size.

    Raises: DatasetError, EvaluationError.
    """

    def outcome(index: int) -> Outcome:
        sample = data[index]
        return sample.target, predict(sample.image)

    return _tally(map(outcome, range(len(data))), data, progress)


def evaluate_files(
    predict: FilePredictor,
    data: SegmentationDataset,
    *,
    in_flight: int = 4,
    progress: bool = True,
) -> Confusion:
    """As `evaluate`, but the predictor gets the image files and decodes them itself.

    `in_flight`: how many files are asked for at a time; `predict` is called from that many
    threads. Raises: DatasetError, EvaluationError, and what `predict` raises.
    """

    def outcome(index: int) -> Outcome:
        return data.target(index), predict(data.pairs[index][0])

    with ThreadPoolExecutor(in_flight) as pool:
        return _tally(_in_order(pool, outcome, len(data), in_flight), data, progress)


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


def _tally(outcomes: Iterator[Outcome], data: SegmentationDataset, progress: bool) -> Confusion:
    confusion = Confusion(data.info.head_sizes)
    bar = tqdm(outcomes, data.split, len(data), unit="image", disable=not progress)
    for (image_path, _label_path), (target, prediction) in zip(data.pairs, bar, strict=True):
        if prediction.shape != target.shape:
            raise EvaluationError(
                f"{image_path}: the answer is {_size(prediction)} but the label is {_size(target)}"
            )
        confusion.add(target, prediction)
    return confusion


def _size(label_map: Pixels) -> str:
    return "x".join(str(side) for side in label_map.shape)


def _in_order(
    pool: ThreadPoolExecutor, outcome: Callable[[int], Outcome], count: int, in_flight: int
) -> Iterator[Outcome]:
    """Results by index. No more than `in_flight` are asked for ahead of the one that is due, so
    that a slow consumer does not fill the memory; on an error nothing more is asked for."""
    indices = iter(range(count))
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
