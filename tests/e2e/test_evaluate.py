"""Draw, train, export, serve, and score all four: the numbers are the same from each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from tests.serving import Server, running
from training.datasets import drawn
from training.evaluation.scales import write_range

RECIPE = Path(__file__).resolve().parents[2] / "training/configs/folder-fcn8s-mobilenet_v1.yaml"
NAME = "streets"
METRICS = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")

# A label may fall either way where two logits are equal up to rounding, which differs between
# PyTorch and ONNX Runtime and between sizes of a batch.
TOLERANCE = 1e-3

# Exporting takes most of a minute on a busy machine.
pytestmark = pytest.mark.timeout(300)

Score = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of odd sizes, the test split as large as three batches."""
    root = tmp_path_factory.mktemp("data")
    words = ["--train", "24", "--val", "2", "--test", "12", "--height", "41", "--width", "59"]
    assert drawn.main([str(root), *words]) == 0
    return root


@pytest.fixture(scope="module")
def run_dir(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long enough for answers that are neither right nor all alike."""
    folder = tmp_path_factory.mktemp("runs") / NAME
    changes = [
        f"name={NAME}",
        f"data.root={data}",
        "network.width=0.125",
        "data.workers=0",
        "network.width=0.125",
        "augment.crop_height=40",
        "augment.crop_width=56",
        "schedule.batch_size=4",
        "schedule.epochs=10",
        "schedule.ema_decay=0.9",
        "optimizer.backbone_lr=1e-2",
        "optimizer.head_lr=1e-2",
        "threads=1",
    ]
    assert main(["train", str(RECIPE), "--run", str(folder), "--set", *changes]) == 0
    return folder


@pytest.fixture(scope="module")
def repository(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model_repository")
    assert main(["export", str(run_dir / "last.pt"), "--repository", str(folder)]) == 0
    # A server scales images of other sizes, unless it is told to take them as they are.
    known = {"learned_side_px": 32, "range_from_px": 32, "range_to_px": 40}
    write_range(folder / NAME / "1" / "model.onnx", known)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with running(repository) as server:
        yield server


KEY = "a-key-of-sixteen-or-more"


@pytest.fixture(scope="module")
def keyed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that wants a key."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"alice {KEY}\n")
    with running(repository, api_keys_file=file) as server:
        yield server


@pytest.fixture
def score(data: Path, capsys: pytest.CaptureFixture[str]) -> Score:
    """`fcn evaluate --json` of a source."""

    def run(source: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["evaluate", source, "--data-root", str(data), "--json"]) == 0
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        return report

    return run


def test_same_numbers_from_all(
    run_dir: Path, repository: Path, server: Server, score: Score
) -> None:
    reports = {
        "checkpoint": score(str(run_dir / "last.pt")),
        "onnx": score(str(repository / NAME / "1" / "model.onnx")),
        "rest": score(server.url),
        "grpc": score(f"grpc://{server.target}?model={NAME}"),
    }
    wanted = reports["onnx"]
    assert 0.2 < wanted["mean_iu"] < 0.99
    for kind, report in reports.items():
        assert report["source_kind"] == kind
        assert report["images"] == 12
        for metric in METRICS:
            assert report[metric] == pytest.approx(wanted[metric], abs=TOLERANCE), (kind, metric)
        assert report["class_iu"] == pytest.approx(wanted["class_iu"], abs=10 * TOLERANCE), kind


def test_the_server_really_answered(server: Server, score: Score) -> None:
    series = f'fcn_requests_total{{code="200",method="Segment",model="{NAME}",transport="rest"}}'
    before = server.metric(series)
    score(server.url)
    server.settles(series, before + 12)


def test_a_server_with_another_model(
    data: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    for url in (server.url, f"grpc://{server.target}"):
        assert main(["evaluate", url, "--data-root", str(data), "--model", "other"]) == 1
        assert f"has no model 'other': it has {NAME}" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_wants_a_key(
    scheme: str, data: Path, keyed: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = keyed.url if scheme == "http" else f"grpc://{keyed.target}"
    words = ["evaluate", url, "--data-root", str(data), "--json"]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"fcn: {url} answers ") and err.count("\n") == 1
    assert err.endswith("give a file with a valid key as --api-key-file\n")

    (tmp_path / "wrong").write_text("a-key-that-nobody-was-given")
    assert main([*words, "--api-key-file", str(tmp_path / "wrong")]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"fcn: {url} answers ")
    assert err.count("\n") == 1
    assert "nobody" not in err

    (tmp_path / "right").write_text(f"{KEY}\n")
    assert main([*words, "--api-key-file", str(tmp_path / "right")]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 12
