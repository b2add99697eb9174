"""Scoring a split: who is asked for what, and which mismatches are refused."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.contract import ClassInfo, TrainingData
from tests.unit.training.conftest import SIZES
from training.datasets import DatasetInfo, SegmentationDataset, open_dataset
from training.datasets.base import UInt8Array
from training.evaluation.evaluate import (
    EvaluationError,
    ImageFailed,
    ServerLost,
    check_classes,
    evaluate,
)
from training.evaluation.metrics import ScoreError
from training.evaluation.server import evaluate_files


def info(*names: str) -> DatasetInfo:
    classes = tuple(ClassInfo(i, name, (0, 0, 0)) for i, name in enumerate(names))
    return DatasetInfo.single_head(classes, TrainingData("drawn", "CC0-1.0"))


@pytest.fixture
def data(streets: Path) -> SegmentationDataset:
    return open_dataset("folder", streets, "test")


def label_of(image_path: Path) -> UInt8Array:
    label = image_path.parents[1] / "labels" / f"{image_path.stem}.png"
    return np.array(Image.open(label))


def test_the_truth_scores_1(data: SegmentationDataset) -> None:
    labels = iter([np.where(t == 255, 0, t) for t in map(data.target, range(len(data)))])
    confusion = evaluate(lambda _image: next(labels), data, progress=False)
    assert confusion.scores().mean_iu == 1
    labelled = sum(int((data.target(i) != 255).sum()) for i in range(len(data)))
    assert confusion.counts.sum() == labelled


@pytest.mark.parametrize("in_flight", [1, 2, 8])
def test_files_score_as_images_do(data: SegmentationDataset, in_flight: int) -> None:
    """A predictor with mistakes, so that a mixed up order would show."""

    def by_image(image: UInt8Array) -> UInt8Array:
        return (image[..., 0] // 64).astype(np.uint8)

    def by_file(path: Path) -> UInt8Array:
        return by_image(np.array(Image.open(path).convert("RGB")))

    wanted = evaluate(by_image, data, progress=False)
    got = evaluate_files(by_file, data, in_flight=in_flight, progress=False)
    assert (got.confusion.counts == wanted.counts).all()
    assert got.complete and got.images == len(data)
    assert 0 < wanted.scores().mean_iu < 1


def test_files_are_asked_for_in_parallel_within_the_limit(data: SegmentationDataset) -> None:
    together = threading.Barrier(2, timeout=20)
    lock, asked, most = threading.Lock(), 0, 0
    data.pairs = data.pairs[:2] * 4  # 8 files, two by two

    def predict(path: Path) -> UInt8Array:
        nonlocal asked, most
        with lock:
            asked += 1
            most = max(most, asked)
        together.wait()
        with lock:
            asked -= 1
        return label_of(path)

    evaluate_files(predict, data, in_flight=2, progress=False)
    assert most == 2


def test_a_file_that_fails_costs_nothing_but_itself(data: SegmentationDataset) -> None:
    def predict(path: Path) -> UInt8Array:
        if path == data.pairs[1][0]:
            raise ImageFailed("no")
        label = label_of(path)
        return np.where(label == 255, 0, label)

    result = evaluate_files(predict, data, in_flight=2, progress=False)
    assert [(failure.image, failure.error) for failure in result.failures] == [
        (data.pairs[1][0], "no")
    ]
    assert (result.images, result.not_asked) == (len(data) - 1, 0)
    assert result.confusion.scores().mean_iu == 1


def test_a_lost_server_is_asked_no_more(data: SegmentationDataset) -> None:
    asked = []
    data.pairs = data.pairs * 10

    def predict(path: Path) -> UInt8Array:
        asked.append(path)
        if len(asked) > 1:
            raise ServerLost("gone")
        return label_of(path)

    result = evaluate_files(predict, data, in_flight=1, progress=False)
    assert len(asked) <= 4 < len(data)
    assert (result.images, len(result.failures), result.not_asked) == (1, 1, len(data) - 2)


def test_another_error_ends_the_evaluation(data: SegmentationDataset) -> None:
    asked = []
    data.pairs = data.pairs * 10

    def predict(path: Path) -> UInt8Array:
        asked.append(path)
        raise EvaluationError("no")

    with pytest.raises(EvaluationError, match="no"):
        evaluate_files(predict, data, in_flight=2, progress=False)
    assert len(asked) <= 5 < len(data)


def test_progress_counts_images(
    data: SegmentationDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(lambda image: np.zeros(image.shape[:2], np.uint8), data)
    err = capsys.readouterr().err
    assert f"{SIZES['test']}/{SIZES['test']}" in err
    assert "image/s" in err


@pytest.mark.parametrize(
    ("size", "label", "error", "complaint"),
    [
        ((39, 56), 0, EvaluationError, r"0000\.jpg: the answer is 39x56 .* is 40x56"),
        ((40, 56), 9, ScoreError, "prediction 9 is not below 4"),
    ],
)
def test_an_answer_that_is_none(
    data: SegmentationDataset,
    size: tuple[int, int],
    label: int,
    error: type[Exception],
    complaint: str,
) -> None:
    with pytest.raises(error, match=complaint):
        evaluate(lambda image: np.full(size, label, np.uint8), data, progress=False)


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (("sky",), r"x\.pt has 1 classes \(sky\), the data set 'drawn' 2 \(sky, road\)"),
        (("road", "sky"), r"class 0 is 'road' for x\.pt but 'sky' for the data set 'drawn'"),
        (("sky", "street"), "class 1 is 'street'"),
    ],
)
def test_class_lists_that_differ(names: tuple[str, ...], complaint: str) -> None:
    check_classes(("sky", "road"), "x.pt", info("sky", "road"))
    with pytest.raises(EvaluationError, match=f"{complaint}.*: give the class list"):
        check_classes(names, "x.pt", info("sky", "road"))
