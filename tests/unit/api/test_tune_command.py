"""`fcn tune`: what it measures, what it chooses, and the file it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli.main import main
from cli.tune import jpeg
from model.contract import InputSpec
from service import tuning
from service.config import SegmenterConfig
from service.core.engines.choice import INT8_FILE
from service.core.types import Network, UInt8Array
from service.errors import ModelLoadError
from service.settings import Settings, environment_name, load_settings
from service.tuning import (
    Candidate,
    SingleLatency,
    Throughput,
    choose,
    choose_alone_threads,
    through_segmenter,
    tune,
    ways_of,
)
from tests import tiny_models
from tests.unit.core.fakes import Function

FP32 = ("onnxruntime", "fp32")
BF16 = ("openvino", "bf16")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(environment_name(name), raising=False)


def rate(engine: str, threads: int, batch: int, images_per_s: float) -> Throughput:
    return Throughput(Candidate(engine, "fp32", 1, threads, batch), images_per_s, 1.0)


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


@pytest.mark.parametrize(
    ("times", "threads", "chosen"),
    [([50.0, 30.0], 1, 2), ([50.0, 46.0], 1, 1), ([50.0, 30.0], 2, 2), ([50.0, 60.0], 1, 1)],
)
def test_a_second_copy_must_be_worth_it(times: list[float], threads: int, chosen: int) -> None:
    single = [SingleLatency(count, ms) for count, ms in zip((1, 2), times, strict=True)]
    assert choose_alone_threads(single, threads) == chosen


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("avx2", ["onnxruntime fp32", "openvino fp32"]),
        (
            "avx2 avx512_vnni",
            ["onnxruntime fp32", "onnxruntime int8", "openvino fp32", "openvino int8"],
        ),
        ("avx512_bf16", ["onnxruntime fp32", "openvino fp32", "openvino bf16"]),
    ],
)
def test_only_what_file_and_cpu_allow_is_measured(
    tmp_path: Path, flags: str, wanted: list[str]
) -> None:
    (tmp_path / INT8_FILE).touch()
    found = ways_of(tmp_path / "model.onnx", ["onnxruntime", "openvino"], frozenset(flags.split()))
    assert [" ".join(way) for way in found] == wanted


class Timed:
    """Serves requests that take a known time of a clock that only they move.

    milliseconds: of an image in one inference, by engine and threads.
    """

    def __init__(self, milliseconds: dict[tuple[str, int], float]) -> None:
        self.now = 0.0
        self.tried: list[tuple[str, str, int, int | None]] = []
        self._milliseconds = milliseconds

    def clock(self) -> float:
        return self.now

    def measure(
        self, config: SegmenterConfig, in_flight: int, end: float
    ) -> tuple[float, list[float]]:
        way = config.engine, config.intra_op_threads or 0
        self.tried.append((config.engine, config.precision, way[1], config.max_batch))
        if way not in self._milliseconds:
            raise ModelLoadError(f"{config.engine} disagrees")
        self.now += 0.1
        alone = in_flight == 1 and (config.engine, config.alone_threads or 0)
        seconds = self._milliseconds[alone or way] / 1e3
        began = self.now
        times: list[float] = []
        while not times or self.now < end:
            self.now += seconds
            times.append(in_flight * seconds)
        return self.now - began, times


def test_tune_chooses_the_fastest_in_time() -> None:
    timed = Timed(
        {
            ("onnxruntime", 1): 80.0,
            ("onnxruntime", 2): 50.0,
            ("openvino", 1): 50.0,
            ("openvino", 2): 40.0,
        }
    )
    told: list[float] = []
    found = tune(
        timed.measure,
        [FP32, BF16],
        seconds=30,
        cores=2,
        progress=lambda share, what: told.append(share),
        clock=timed.clock,
    )
    assert found.chosen.candidate == Candidate("openvino", "bf16", 1, 2, 1)
    assert found.chosen.images_per_s == pytest.approx(25)
    assert found.chosen.p50_ms == pytest.approx(8 * 40)
    assert found.settings() == {
        "FCN_ENGINE": "openvino",
        "FCN_PRECISION": "bf16",
        "FCN_INSTANCES": "1",
        "FCN_INTRA_OP_THREADS": "2",
        "FCN_ALONE_THREADS": "2",
        "FCN_MAX_BATCH": "1",
    }
    assert 25 < timed.now < 33
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_batches_and_threads_are_tried_of_the_fast_ways_and_batches_in_onnx_runtime_alone() -> None:
    timed = Timed({(engine, n): 50.0 / n for engine in ("onnxruntime", "openvino") for n in (1, 2)})
    tune(timed.measure, [FP32, BF16], seconds=30, cores=2, clock=timed.clock)
    assert set(timed.tried) == {
        *(("onnxruntime", "fp32", threads, batch) for threads in (1, 2) for batch in (1, 4)),
        *(("openvino", "bf16", threads, 1) for threads in (1, 2)),
    }
    slow = Timed({("onnxruntime", 1): 80.0, ("openvino", 1): 50.0, ("openvino", 2): 50.0})
    tune(slow.measure, [FP32, BF16], seconds=30, cores=2, clock=slow.clock)
    assert [way for way in slow.tried if way[0] == "onnxruntime"] == [("onnxruntime", "fp32", 1, 1)]


def test_a_lone_image_is_measured_with_as_many_threads_or_more() -> None:
    ms = {("onnxruntime", 1): 20.0, ("onnxruntime", 2): 10.0, ("onnxruntime", 4): 11.0}
    timed = Timed(ms)
    found = tune(timed.measure, [FP32], seconds=30, cores=4, clock=timed.clock)
    assert found.chosen.candidate.threads == 2
    assert [(row.threads, round(row.p50_ms)) for row in found.single] == [(2, 10), (4, 11)]
    assert found.alone_threads == 2


def test_a_way_that_is_refused_is_told_and_tried_once() -> None:
    timed = Timed({("onnxruntime", 1): 80.0, ("onnxruntime", 2): 50.0})
    found = tune(timed.measure, [FP32, BF16], seconds=5, cores=2, clock=timed.clock)
    assert found.refused == {"openvino bf16": "openvino disagrees"}
    assert {row.candidate.engine for row in found.throughput} == {"onnxruntime"}
    assert sum(way[0] == "openvino" for way in timed.tried) == 1
    with pytest.raises(ModelLoadError, match="openvino disagrees"):
        tune(timed.measure, [BF16], seconds=5, cores=2, clock=timed.clock)


def test_too_little_time_measures_each_once() -> None:
    timed = Timed({("onnxruntime", 1): 8000.0, ("onnxruntime", 2): 5000.0})
    found = tune(timed.measure, [FP32], seconds=1, cores=2, clock=timed.clock)
    assert len(found.throughput) == 4
    assert len(timed.tried) == 1 + 4 + 1
    assert found.chosen.candidate.threads == 2


def test_the_requests_go_through_the_segmenter(tmp_path: Path) -> None:
    path = tiny_models.write_model(tmp_path)
    measure = through_segmenter(path, "tiny", jpeg(16, 24), (16, 24), 2)
    took, times = measure(SegmenterConfig(provider="cpu", instances=2), 8, 0.0)
    assert len(times) == 8  # each of those in flight once, after its warm-up
    assert 0 < max(times) <= took


def test_a_network_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(batch: UInt8Array) -> UInt8Array:
        if batch.max():  # not when it is warmed up with black
            raise RuntimeError("no memory")
        return batch[..., 0]

    network = Network(tmp_path, tiny_models.contract(), "cpu", [Function(fail)])
    monkeypatch.setattr(tuning, "open_network", lambda *words: network)
    (tmp_path / "m.onnx").touch()
    measure = through_segmenter(tmp_path / "m.onnx", "tiny", jpeg(8, 8), (8, 8), 2)
    with pytest.raises(ModelLoadError, match="fails on 8x8 images, 4 in one inference"):
        measure(SegmenterConfig(provider="cpu", max_batch=4), 8, 0.0)


def test_the_image_is_drawn_and_not_flat() -> None:
    from service.core.images.decode import decode
    from service.core.images.header import read_header

    file = jpeg(16, 24)
    image = decode(file, read_header(file, max_bytes=len(file)), max_pixels=10**6)
    assert image.shape == (16, 24, 3)
    assert np.std(image) > 10


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
    assert (settings.engine, settings.precision) == ("onnxruntime", "fp32")
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
        (["--model", "model.int8.onnx"], "belongs to the model.onnx beside it"),
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
