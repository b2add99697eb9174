"""`fcn tune`: what it measures, what it chooses, and the file it writes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cli.main import main
from model.contract import InputSpec
from service import tuning
from service.config import SegmenterConfig
from service.core.types import Instance
from service.errors import ModelLoadError
from service.settings import Settings, environment_name, load_settings
from service.tuning import (
    Candidate,
    SingleLatency,
    Throughput,
    candidates,
    choose,
    choose_alone_threads,
    drift_corrected,
    tune,
)
from tests import tiny_models
from tests.unit.core.fakes import Function

UInt8Array = npt.NDArray[np.uint8]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(environment_name(name), raising=False)


def rate(engine: str, threads: int, batch: int, images_per_s: float) -> Throughput:
    return Throughput(Candidate(engine, 1, threads, batch), images_per_s, 1.0)


def test_the_simplest_of_those_close_to_the_best_is_chosen() -> None:
    rows = [
        rate("onnxruntime", 1, 1, 90.0),
        rate("onnxruntime", 2, 1, 97.5),
        rate("onnxruntime", 1, 4, 98.0),
        rate("openvino", 1, 1, 100.0),
    ]
    assert choose(rows) == rows[1]
    assert choose([rows[0], rows[3]]) == rows[3]


def test_batches_must_be_worth_the_wait() -> None:
    single, batch = rate("onnxruntime", 1, 1, 100.0), rate("onnxruntime", 1, 4, 107.0)
    assert choose([single, batch]) == single
    faster = rate("onnxruntime", 1, 4, 109.0)
    assert choose([single, batch, faster]) == faster
    assert choose([batch]) == batch


def test_a_machine_that_slows_down_favours_nobody() -> None:
    slow, fast = Candidate("onnxruntime", 2, 1, 1), Candidate("openvino", 2, 1, 1)
    # As fast as each other but for 5 %, at the machine's speeds 1, 0.5 and 2; `fast` has one more.
    found = drift_corrected({slow: [100, 50, 200], fast: [105, 52.5, 210, 1]})
    assert found[fast] / found[slow] == pytest.approx(1.05)
    assert 110 < found[slow] < 125
    # One bad slot is not believed.
    found = drift_corrected({slow: [100, 100, 100], fast: [105, 60, 105]})
    assert found[fast] > found[slow]


@pytest.mark.parametrize(
    ("times", "threads", "chosen"),
    [([50.0, 30.0], 1, 2), ([50.0, 46.0], 1, 1), ([50.0, 30.0], 2, 2), ([50.0, 60.0], 1, 1)],
)
def test_a_second_copy_must_be_worth_it(times: list[float], threads: int, chosen: int) -> None:
    single = [SingleLatency(count, ms) for count, ms in zip((1, 2), times, strict=True)]
    assert choose_alone_threads(single, threads) == chosen


def test_candidates_use_all_cores_and_no_more() -> None:
    found = candidates(6, ["onnxruntime", "openvino"])
    assert found[0] == Candidate("onnxruntime", 6, 1, 1)
    assert {(c.instances, c.threads) for c in found} == {(6, 1), (3, 2), (1, 4), (1, 6)}
    assert {(c.engine, c.batch) for c in found} == set(
        itertools.product(("onnxruntime", "openvino"), (1, 4))
    )


class Timed:
    """Networks whose every inference takes a known time of a clock that only they move."""

    provider = "cpu"
    contract = tiny_models.contract()
    path = Path("model.onnx")

    def __init__(self, milliseconds: dict[tuple[str, int], float]) -> None:
        self.now = 0.0
        self.opened: list[tuple[str, int]] = []
        self._milliseconds = milliseconds

    def clock(self) -> float:
        return self.now

    def open(self, config: SegmenterConfig, *rest: object) -> Timed:
        way = config.engine, config.intra_op_threads or 0
        if way not in self._milliseconds:
            raise ModelLoadError(f"{config.engine} disagrees")
        self.now += 0.1
        self.opened.append(way)
        return self

    @property
    def instances(self) -> Sequence[Instance]:
        return [Function(self._run)]

    def _run(self, batch: UInt8Array) -> UInt8Array:
        self.now += len(batch) * self._milliseconds[self.opened[-1]] / 1e3
        return batch[..., 0]


def test_tune_chooses_the_fastest_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed(
        {
            ("onnxruntime", 1): 80.0,
            ("onnxruntime", 2): 50.0,
            ("openvino", 1): 90.0,
            ("openvino", 2): 40.0,
        }
    )
    monkeypatch.setattr(tuning, "open_network", timed.open)
    told: list[float] = []
    found = tune(
        Path("m"),
        size=(8, 8),
        seconds=30,
        cores=2,
        engines=["onnxruntime", "openvino"],
        progress=lambda share, what: told.append(share),
        clock=timed.clock,
    )
    assert found.chosen.candidate == Candidate("openvino", 1, 2, 1)
    assert found.chosen.images_per_s == pytest.approx(25)
    assert found.chosen.p50_ms == pytest.approx(40)
    assert [(row.threads, round(row.p50_ms)) for row in found.single] == [(1, 90), (2, 40)]
    assert found.alone_threads == 2
    assert 25 < timed.now < 33
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_an_engine_that_is_refused_is_told_and_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed({("onnxruntime", 1): 80.0, ("onnxruntime", 2): 50.0})
    monkeypatch.setattr(tuning, "open_network", timed.open)
    found = tune(
        Path("m"),
        size=(8, 8),
        seconds=5,
        cores=2,
        engines=["onnxruntime", "openvino"],
        clock=timed.clock,
    )
    assert found.refused == {"openvino": "openvino disagrees"}
    assert {row.candidate.engine for row in found.throughput} == {"onnxruntime"}


def test_too_little_time_measures_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed({("onnxruntime", 1): 8000.0, ("onnxruntime", 2): 5000.0})
    monkeypatch.setattr(tuning, "open_network", timed.open)
    found = tune(
        Path("m"), size=(8, 8), seconds=1, cores=2, engines=["onnxruntime"], clock=timed.clock
    )
    assert len(found.throughput) == 4
    assert len(timed.opened) == 4 + 2
    assert found.chosen.candidate.threads == 2


def test_a_network_that_fails_under_load_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed({("onnxruntime", 1): 80.0, ("onnxruntime", 2): 50.0})
    calls = itertools.count()

    def fail(batch: UInt8Array) -> UInt8Array:
        if next(calls):
            raise RuntimeError("no memory")
        return batch[..., 0]

    monkeypatch.setattr(timed, "_run", fail)
    monkeypatch.setattr(tuning, "open_network", timed.open)
    with pytest.raises(ModelLoadError, match="fails on 8x8 images, 1 at once"):
        tune(Path("m"), size=(8, 8), seconds=1, cores=2, engines=["onnxruntime"])


def run_tune(tmp_path: Path, *words: str) -> int:
    fast = ["--seconds", "0.2", "--size", "16x24", "--engine", "onnxruntime"]
    return main(["tune", *fast, "--out", str(tmp_path / "tuned.env"), *words])


def test_the_command_writes_a_file_that_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_models.write_model(tmp_path / "models")
    monkeypatch.setenv("FCN_MODEL_REPOSITORY", str(tmp_path / "models"))
    assert run_tune(tmp_path) == 0
    out = capsys.readouterr().out
    assert "<- chosen" in out
    assert "written to" in out
    settings = load_settings({"settings_file": str(tmp_path / "tuned.env")})
    assert settings.engine == "onnxruntime"
    assert settings.instances and settings.intra_op_threads and settings.alone_threads
    assert run_tune(tmp_path, "--json") == 0  # its own file may be replaced
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["FCN_ENGINE"] == "onnxruntime"
    assert report["throughput"][0]["candidate"]["batch"] == 1
    assert set(report["settings"]) <= {environment_name(n) for n in Settings.model_fields}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--size", "16"], "--size 16: give HEIGHTxWIDTH"),
        (["--size", "0x8"], "--size 0x8: give HEIGHTxWIDTH"),
        (["--size", "65x8"], "takes no images of 65x8"),
        (["--seconds", "61"], "--seconds 61: give more than 0 and at most 60"),
        (["--seconds", "0"], "--seconds 0: give more than 0"),
        (["--model", "missing.onnx"], "missing.onnx cannot be loaded"),
        (["--out", "/nonexistent/tuned.env"], "/nonexistent/tuned.env cannot be written"),
        (["--out", "{folder}"], "cannot be written: Is a directory"),
        (["--out", "{folder}/mine.txt"], "was not written by fcn tune"),
        (["--out", "{folder}/image"], "cannot be written: it is not UTF-8 text"),
    ],
)
def test_mistakes_are_told_before_measuring(
    words: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    contract = tiny_models.contract(input_spec=InputSpec(stride=1, max_side_px=64))
    tiny_models.write_model(tmp_path / "models", model_contract=contract)
    monkeypatch.setenv("FCN_MODEL_REPOSITORY", str(tmp_path / "models"))
    (tmp_path / "mine.txt").write_text("FCN_HOST=0.0.0.0\n")
    (tmp_path / "image").write_bytes(b"\xff\xd8\xff")
    assert run_tune(tmp_path, *(word.format(folder=tmp_path) for word in words)) == 1
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert (tmp_path / "mine.txt").read_text() == "FCN_HOST=0.0.0.0\n"
    assert not (tmp_path / "tuned.env").exists()


def test_no_model_and_several_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FCN_MODEL_REPOSITORY", str(tmp_path / "models"))
    assert run_tune(tmp_path) == 1
    assert str(tmp_path / "models") in capsys.readouterr().err
    tiny_models.write_model(tmp_path / "models", "one")
    tiny_models.write_model(tmp_path / "models", "two")
    assert run_tune(tmp_path) == 1
    assert "has one, two: say which to tune for with --model" in capsys.readouterr().err
    monkeypatch.setenv("FCN_DEFAULT_MODEL", "two")
    assert run_tune(tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["model"].endswith("two/1/model.onnx")
