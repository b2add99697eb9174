"""Predicts every image of a split, compares it with its label, and counts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from training.datasets import DatasetInfo, SegmentationDataset
from training.datasets.base import UInt8Array
from training.datasets.coverage import few
from training.distributed import SINGLE, World
from training.evaluation.audit import Audit
from training.evaluation.metrics import Confusion
from training.evaluation.predictors import Predictor


class EvaluationError(ValueError):
    """A predictor and a data set do not belong together, or an answer is no label map of it."""


class ImageFailed(EvaluationError):
    """One image got no answer; the next one may get one."""


class ServerLost(EvaluationError):
    """No image will get an answer any more."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Names an image that was not scored, and says why."""

    image: Path
    error: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Holds the result of one pass: the counts over the `images` that were scored."""

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
    audit: Audit | None = None,
) -> Confusion:
    """Count over the whole split, one image at a time at its own size.

    Each process predicts its share of the images, no image twice; the matrices are summed once,
    and all get the sum. `audit` gets each image's counts. Raises: DatasetError, EvaluationError.
    """
    confusion = Confusion(data.info.head_sizes)
    indices = world.share(range(len(data)))
    shown = progress and world.is_main
    for index in tqdm(indices, data.split, unit="image", disable=not shown):
        sample = data[index]
        started = time.perf_counter()
        prediction = predict(sample.image)
        seconds = time.perf_counter() - started
        count_image(confusion, data.pairs[index][0], sample.target, prediction)
        if audit is not None:
            audit.add(index, data.info.head_sizes, sample.target, prediction, seconds)
    confusion.counts = world.sum(torch.from_numpy(confusion.counts)).numpy()
    return confusion


def check_classes(names: tuple[str, ...], source: str, info: DatasetInfo) -> None:
    """Refuse a predictor whose class ids mean something else than the data set's.

    Raises: EvaluationError.
    """
    wanted = next(iter(info.class_names.values()))
    if names == wanted:
        return
    data = f"the data set {info.data.name!r}"
    if len(names) != len(wanted):
        counts = f"{source} has {len(names)} classes ({few(names, 4)}), {data} {len(wanted)}"
        raise EvaluationError(f"{counts} ({few(wanted, 4)}): give the class list it was trained on")
    index = next(i for i, pair in enumerate(zip(names, wanted, strict=True)) if len(set(pair)) > 1)
    raise EvaluationError(
        f"class {index} is {names[index]!r} for {source} but {wanted[index]!r} for {data}: give "
        "the class list it was trained on"
    )


def count_image(
    confusion: Confusion, image: Path, target: UInt8Array, prediction: UInt8Array
) -> None:
    """Add one image. Raises: EvaluationError, ScoreError."""
    if prediction.shape != target.shape:
        answer, label = ("x".join(map(str, array.shape)) for array in (prediction, target))
        raise EvaluationError(f"{image}: the answer is {answer} but the label is {label}")
    confusion.add(target, prediction)
