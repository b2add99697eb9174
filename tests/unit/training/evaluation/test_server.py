"""A server as a predictor: what is sent, and what one failing image costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_client import FcnClient
from tests.drawing import encode, png, street
from tests.tiny_models import expected_label_map
from tests.unit.training import brightest
from tests.unit.training.evaluation.fake_server import FakeServer, Reply, model, problem
from training.datasets import SegmentationDataset, open_dataset
from training.distributed import World
from training.evaluation.evaluate import EvaluationError, ImageFailed, ServerLost
from training.evaluation.server import ServerPredictor
from training.evaluation.targets import ServerTarget, open_target, score

OpenPredictor = Callable[..., ServerPredictor]


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FcnClient, "_sleep", staticmethod(lambda _seconds: None))


@pytest.fixture
def open_predictor(server: FakeServer) -> Iterator[OpenPredictor]:
    opened = []

    def make(model: str | None = None) -> ServerPredictor:
        opened.append(ServerPredictor(server.url, model, deadline_s=30))
        return opened[-1]

    yield make
    for predictor in opened:
        predictor.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    path.write_bytes(png(street()))
    return path


def test_the_file_itself_is_sent(
    server: FakeServer, open_predictor: OpenPredictor, image: Path
) -> None:
    predict = open_predictor()
    assert predict.class_names == ("red", "green", "blue")
    assert (predict(image) == expected_label_map(street())).all()
    (query,) = server.posts
    assert (query["model"], query["version"], query["output"]) == (["tiny"], ["2"], ["label_map"])


@pytest.mark.parametrize(("asked", "chosen"), [(None, "b"), ("a", "a")])
def test_model_by_name_or_default(
    server: FakeServer, open_predictor: OpenPredictor, image: Path, asked: str | None, chosen: str
) -> None:
    server.listing = {"models": [model("a", default=False, classes=["x"]), model("b")]}
    predict = open_predictor(asked)
    predict(image)
    assert server.posts[-1]["model"] == [chosen]
    assert len(predict.class_names) == (1 if chosen == "a" else 3)


@pytest.mark.parametrize(
    "reply",
    [
        problem(415, "unsupported-image-format"),
        problem(504, "deadline-exceeded"),
        (500, b"<html>", {}),
        (200, b"hello", {"Content-Type": "image/png"}),
        (200, png(np.zeros((2, 2, 3), np.uint8)), {"Content-Type": "image/png"}),
    ],
)
def test_an_image_refused_fails_alone(
    server: FakeServer, open_predictor: OpenPredictor, image: Path, reply: Reply
) -> None:
    predict = open_predictor()
    server.segment = lambda _body: reply
    with pytest.raises(ImageFailed):
        predict(image)


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_no_longer_valid_ends_it(
    server: FakeServer, open_predictor: OpenPredictor, image: Path, status: int
) -> None:
    predict = open_predictor()
    server.segment = lambda _body: problem(status)
    with pytest.raises(ServerLost):
        predict(image)


@pytest.fixture
def data(tmp_path: Path) -> SegmentationDataset:
    brightest.write(tmp_path)
    return open_dataset("folder", tmp_path, "test")


def test_the_images_that_were_answered_are_scored(
    server: FakeServer, data: SegmentationDataset
) -> None:
    """The second of them never is."""
    slow = data.pairs[1][0].read_bytes()
    server.segment = lambda body: (
        problem(504, "deadline-exceeded") if body == slow else server.label(body)
    )
    target = open_target(server.url)
    evaluation = score(target, data, in_flight=2, progress=False)
    target.close()
    assert evaluation.images == len(data) - 1
    (failure,) = evaluation.failures
    assert failure.image == data.pairs[1][0] and "tune it" in failure.error
    assert evaluation.confusion.scores().mean_iu == 1


@pytest.mark.parametrize(
    ("label", "complaint"),
    [
        (b"hello", "cannot read the label"),
        (encode(Image.new("L", (3, 2))), "but the label is 2x3"),
    ],
)
def test_a_wrong_label_costs_its_image_alone(
    server: FakeServer, data: SegmentationDataset, label: bytes, complaint: str
) -> None:
    data.pairs[1][1].write_bytes(label)
    target = open_target(server.url)
    evaluation = score(target, data, progress=False)
    target.close()
    assert evaluation.images == len(data) - 1
    (failure,) = evaluation.failures
    assert complaint in failure.error


def test_a_lost_server_keeps_what_was_scored(server: FakeServer, data: SegmentationDataset) -> None:
    server.segment = lambda body: server.label(body) if len(server.posts) < 2 else problem(401)
    target = open_target(server.url)
    evaluation = score(target, data, in_flight=1, progress=False)
    target.close()
    assert (evaluation.images, len(evaluation.failures)) == (2, 1)
    assert evaluation.not_asked == len(data) - 3
    assert len(server.posts) <= 4


def test_no_image_answered_is_an_error(server: FakeServer, data: SegmentationDataset) -> None:
    server.segment = lambda _body: problem(500)
    target = open_target(server.url)
    with pytest.raises(EvaluationError, match=r"no image was scored: .*0\.png: Out of tune"):
        score(target, data, progress=False)
    target.close()


def test_a_server_is_asked_by_one_process(server: FakeServer, data: SegmentationDataset) -> None:
    target = open_target(server.url)
    assert isinstance(target, ServerTarget)
    with pytest.raises(EvaluationError, match="leave torchrun out"):
        score(target, data, world=World(0, 2))
    target.close()


def test_nothing_but_a_server_needs_the_client() -> None:
    """`fcn train` and the other targets work where it is not installed."""
    script = (
        "import sys; sys.modules['fcn_client'] = None\n"
        "import training.train, training.evaluation.targets as targets\n"
        "try: targets.open_target('http://127.0.0.1:1')\n"
        "except ModuleNotFoundError as error: print(error.name)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "fcn_client\n"), done.stderr
