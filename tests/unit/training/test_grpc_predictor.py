"""A server over gRPC: a small one here that answers as the test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

import training.server
from fcn_client.stubs import segmentation_pb2 as pb
from fcn_client.stubs import segmentation_pb2_grpc as pb_grpc
from tests.drawing import png, read_png, street
from tests.tiny_models import CLASSES, expected_label_map
from tests.unit.training.test_rest_predictor import encode_label_map, free_port
from training.grpc_predictor import GrpcPredictor
from training.server import ServerError


def model(
    name: str, version: str, *, default: bool = False, state: str = "ready", classes: int = 3
) -> pb.Model:
    infos = [pb.ClassInfo(id=info.id, name=info.name) for info in CLASSES[:classes]]
    return pb.Model(name=name, version=version, state=state, is_default=default, classes=infos)


class FakeServer(pb_grpc.SegmentationServicer):  # type: ignore[name-defined,misc]  # untyped
    """`answer` may be replaced; `requests` are those of Segment."""

    def __init__(self) -> None:
        self.models = [model("tiny", "1", classes=1), model("tiny", "2", default=True)]
        self.requests: list[pb.SegmentRequest] = []
        self.answer: Callable[[pb.SegmentRequest, grpc.ServicerContext], pb.SegmentResponse]
        self.answer = self.label
        self.server = grpc.server(ThreadPoolExecutor(2))
        pb_grpc.add_SegmentationServicer_to_server(self, self.server)
        self.url = f"grpc://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def ListModels(self, _request: Any, _context: Any) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=self.models)

    def Segment(
        self, request: pb.SegmentRequest, context: grpc.ServicerContext
    ) -> pb.SegmentResponse:
        self.requests.append(request)
        return self.answer(request, context)

    def label(self, request: pb.SegmentRequest, _context: Any) -> pb.SegmentResponse:
        return pb.SegmentResponse(
            body=encode_label_map(expected_label_map(read_png(request.image)))
        )


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.server.stop(None).wait()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    path.write_bytes(png(street()))
    return path


@pytest.fixture
def open_predictor(server: FakeServer) -> Iterator[Callable[..., GrpcPredictor]]:
    opened = []

    def make(model: str | None = None) -> GrpcPredictor:
        opened.append(GrpcPredictor(server.url, model))
        return opened[-1]

    yield make
    for predictor in opened:
        predictor.close()


OpenPredictor = Callable[..., GrpcPredictor]


def test_the_file_itself_is_sent(
    server: FakeServer, open_predictor: OpenPredictor, picture: Path
) -> None:
    predict = open_predictor()
    assert predict.model.class_names == ("red", "green", "blue")
    assert (predict(picture) == expected_label_map(street())).all()
    (request,) = server.requests
    assert request.image == picture.read_bytes()
    assert (request.model, request.version) == ("tiny", "2")
    assert request.output == pb.OUTPUT_LABEL_MAP


def test_of_a_model_that_is_no_default_the_newest_ready_version(
    server: FakeServer, open_predictor: OpenPredictor
) -> None:
    server.models += [model("b", "1"), model("b", "2"), model("b", "3", state="loading")]
    assert open_predictor("b").model.version == "2"
    assert open_predictor().model.name == "tiny"


def test_the_default_may_be_an_older_version(
    server: FakeServer, open_predictor: OpenPredictor
) -> None:
    server.models = [model("a", "1", default=True), model("a", "2")]
    assert open_predictor().model.version == "1"


def test_a_label_map_above_4_megabytes(
    server: FakeServer, open_predictor: OpenPredictor, picture: Path
) -> None:
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 255, (2200, 2200), np.uint8)
    server.answer = lambda *_: pb.SegmentResponse(body=encode_label_map(noise))
    assert (open_predictor()(picture) == noise).all()


def test_no_such_model(open_predictor: OpenPredictor) -> None:
    with pytest.raises(ServerError, match="has no model 'huge': it has tiny"):
        open_predictor("huge")


def test_no_server() -> None:
    url = f"grpc://127.0.0.1:{free_port()}"
    with pytest.raises(ServerError, match=f"cannot reach {url}: "):
        GrpcPredictor(url)


def test_another_kind_of_server() -> None:
    other = grpc.server(ThreadPoolExecutor(1))
    url = f"grpc://127.0.0.1:{other.add_insecure_port('127.0.0.1:0')}"
    other.start()
    with pytest.raises(ServerError, match="answered UNIMPLEMENTED"):
        GrpcPredictor(url)
    other.stop(None).wait()


def refuse(code: grpc.StatusCode, *trailing: tuple[str, str]) -> Callable[..., pb.SegmentResponse]:
    def answer(_request: Any, context: grpc.ServicerContext) -> pb.SegmentResponse:
        context.set_trailing_metadata(trailing)
        context.abort(code, "Out of tune: tune it")
        raise AssertionError("abort raises")

    return answer


def test_a_refusal_is_reported_with_its_words(
    server: FakeServer, open_predictor: OpenPredictor, picture: Path
) -> None:
    server.answer = refuse(grpc.StatusCode.INVALID_ARGUMENT)
    message = r"street\.png: .* answered INVALID_ARGUMENT: Out of tune: tune it"
    with pytest.raises(ServerError, match=message):
        open_predictor()(picture)


def test_a_busy_server_is_asked_again(
    server: FakeServer,
    open_predictor: OpenPredictor,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training.server, "MAX_WAIT_S", 0.01)
    busy = refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, ("grpc-retry-pushback-ms", "2000"))

    def answer(request: pb.SegmentRequest, context: grpc.ServicerContext) -> pb.SegmentResponse:
        if len(server.requests) < 4:
            return busy(request, context)
        return server.label(request, context)

    server.answer = answer
    assert (open_predictor()(picture) == expected_label_map(street())).all()
    assert len(server.requests) == 4


def test_a_server_that_says_not_to_come_back(
    server: FakeServer, open_predictor: OpenPredictor, picture: Path
) -> None:
    server.answer = refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, ("grpc-retry-pushback-ms", "-1"))
    with pytest.raises(ServerError, match="answered RESOURCE_EXHAUSTED"):
        open_predictor()(picture)
    assert len(server.requests) == 1


def test_an_answer_that_is_no_label_map(
    server: FakeServer, open_predictor: OpenPredictor, picture: Path
) -> None:
    server.answer = lambda *_: pb.SegmentResponse(body=b"hello")
    with pytest.raises(ServerError, match="something that is no PNG"):
        open_predictor()(picture)
