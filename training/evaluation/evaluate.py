"""Predicts every image of a split, compares it with its label, and counts."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from fcn_client.sync.window import in_window
from training.datasets import DatasetInfo, SegmentationDataset
from training.datasets.base import UInt8Array
from training.distributed import SINGLE, World
from training.evaluation.metrics import Confusion
from training.evaluation.predictors import FilePredictor, Predictor


class EvaluationError(ValueError):
    """A predictor and a data set do not belong together, or an answer is no label map of it."""


class ImageFailed(EvaluationError):
    """One image got no answer; the next one may get one."""


class ServerLost(EvaluationError):
    """No image will get an answer any more."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that was not scored, and why."""

    image: Path
    error: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of one pass: the counts over the `images` that were scored."""

    confusion: Confusion
    images: int
    failures: tuple[Failure, ...] = ()
    not_asked: int = 0
    """Images left when the server was lost."""

    @property
    def complete(self) -> bool:
        return not self.failures


def evaluate(
    predict: Predictor,
    data: SegmentationDataset,
    *,
    progress: bool = True,
    world: World = SINGLE,
) -> Confusion:
    """Count over the whole split, one image at a time at its own size.

    Each process predicts its share of the images, no image twice; the matrices are summed once,
    and all get the sum. Raises: DatasetError, EvaluationError.
    """
    confusion = Confusion(data.info.head_sizes)
    indices = world.share(range(len(data)))
    shown = progress and world.is_main
    for index in tqdm(indices, data.split, unit="image", disable=not shown):
        sample = data[index]
        _count(confusion, data.pairs[index][0], sample.target, predict(sample.image))
    confusion.counts = world.sum(torch.from_numpy(confusion.counts)).numpy()
    return confusion


def evaluate_files(
    predict: FilePredictor,
    data: SegmentationDataset,
    *,
    in_flight: int = 4,
    progress: bool = True,
) -> Evaluation:
    """Count as `evaluate` does, for a predictor that decodes the image files itself.

    `in_flight`: how many files are asked for at a time; `predict` is called from that many
    threads. An image that fails is reported and not scored, and after ServerLost the rest is not
    asked for: an hour of answers is worth more than none.
    Raises: DatasetError, EvaluationError, also if no image was scored.
    """
    confusion = Confusion(data.info.head_sizes)
    failures: list[Failure] = []
    scored = 0

    def work(index: int, _item: int) -> tuple[UInt8Array, UInt8Array] | ImageFailed | ServerLost:
        try:
            return data.target(index), predict(data.pairs[index][0])
        except (ImageFailed, ServerLost) as error:
            return error

    answers = in_window(work, range(len(data)), in_flight, ordered=True)
    with (
        closing(answers),
        tqdm(total=len(data), desc=data.split, unit="image", disable=not progress) as bar,
    ):
        for index, answer in enumerate(answers):
            image = data.pairs[index][0]
            bar.update()
            if isinstance(answer, EvaluationError):
                failures.append(Failure(image, str(answer)))
                if isinstance(answer, ServerLost):
                    break
            else:
                _count(confusion, image, *answer)
                scored += 1
    if not scored:
        raise EvaluationError(f"no image was scored: {failures[0].image}: {failures[0].error}")
    not_asked = len(data) - scored - len(failures)
    return Evaluation(confusion, scored, tuple(failures), not_asked)


def check_classes(names: tuple[str, ...], source: str, info: DatasetInfo) -> None:
    """Refuse a predictor whose class ids mean something else than the data set's.

    Raises: EvaluationError.
    """
    wanted = next(iter(info.class_names.values()))
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


def _count(confusion: Confusion, image: Path, target: UInt8Array, prediction: UInt8Array) -> None:
    """Add one image. Raises: EvaluationError, ScoreError."""
    if prediction.shape != target.shape:
        answer, label = ("x".join(map(str, array.shape)) for array in (prediction, target))
        raise EvaluationError(f"{image}: the answer is {answer} but the label is {label}")
    confusion.add(target, prediction)
