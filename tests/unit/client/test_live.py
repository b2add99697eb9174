"""`fcn predict` of a camera: an RTSP stream that the test serves, and what there is of webcams."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.main import main
from fcn_client.errors import InvalidInput
from fcn_client.images import read_rgb
from fcn_client.predict.live import Live, _Newest, is_live
from tests import rtsp
from tests.conftest import need
from tests.drawing import read_png
from tests.tiny_models import write_model

COLORS = ((220, 20, 20), (20, 220, 20), (20, 20, 220))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCN_INTRA_OP_THREADS", "1")
    monkeypatch.setenv("FCN_INSTANCES", "1")


def film(count: int) -> list[bytes]:
    """Frames of red, green and blue in turn, encoded."""
    try:
        import av  # noqa: F401
    except ModuleNotFoundError:
        need(False, "PyAV (pip install av) decodes videos")
    return rtsp.encoded(np.full((48, 64, 3), COLORS[n % 3], np.uint8) for n in range(count))


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    code = main(["predict", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("source", "live"),
    [
        ("rtsp://cam/1", True),
        ("rtsps://user:secret@cam:8554/1?a=b", True),
        ("http://cam/video.mjpg", True),
        ("/dev/video0", True),
        ("/dev/video", False),
        ("film.mp4", False),
        ("rtsp:/cam", False),
        ("file:///film.mp4", False),
    ],
)
def test_what_is_a_camera(source: str, live: bool) -> None:
    assert is_live(source) is live


def test_a_stream_is_labelled_as_it_comes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "models")
    out = tmp_path / "out"
    with rtsp.camera(film(20)) as url:
        secret = url.replace("rtsp://", "rtsp://user:secret@")
        code, report = run(capsys, secret, "--out", out, "--local", model, "--write", "label_map")
    assert (code, report["failed"], report["skipped"]) == (0, [], 0)
    assert report["done"] >= 1 and report["done"] + report["dropped"] == 20
    maps = sorted((out / "label_maps").rglob("*.png"))
    assert len(maps) == report["done"]
    assert maps[-1].name == "000019.png", "the newest frame is not dropped"
    for path in maps:
        labels = read_png(path.read_bytes())
        assert labels.shape == (48, 64) and (labels == int(path.stem) % 3).all()
    journal = (out / "predict.jsonl").read_text()
    assert "127.0.0.1" in journal and "secret" not in journal


def test_another_run_has_names_of_its_own() -> None:
    with rtsp.camera(film(6)) as url:
        runs = [list(Live(url).items()) for _ in range(2)]
    first, second = ({Path(item.name).parent for item in items} for items in runs)
    assert len(first) == len(second) == 1 and first != second


def test_every_and_frames_choose_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with rtsp.camera(film(12)) as url:
        numbers = [item.frame for item in Live(url).items(every=5)]
        assert set(numbers) <= {0, 5, 10} and numbers[-1] == 10
        model = write_model(tmp_path / "models")
        words = ("--out", tmp_path / "out", "--local", model, "--frames", 1)
        code, report = run(capsys, url, *words)
    assert (code, report["done"]) == (0, 1)


def test_a_stream_that_is_not_there_is_said_without_its_password(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film(1)
    model = write_model(tmp_path / "models")
    words = ["--out", str(tmp_path / "out"), "--local", str(model)]
    assert main(["predict", "rtsp://user:secret@127.0.0.1:9/cam", *words]) == 1
    error = capsys.readouterr().err
    assert "rtsp://127.0.0.1:9/cam cannot be read as a video: " in error
    assert "secret" not in error and error.count("\n") == 1
    assert main(["predict", "/dev/video987", *words]) == 1
    assert "/dev/video987 cannot be read as a video: " in capsys.readouterr().err
    assert main(["predict", "rtsp://[x/cam", *words]) == 1
    assert "is no address" in capsys.readouterr().err
    assert main(["predict", "rtsp://cam", *words, "--annotations", "coco"]) == 1
    assert "--annotations is for files" in capsys.readouterr().err


def test_a_stream_without_its_decoder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InvalidInput, match="pip install av$"):
        list(Live("rtsp://127.0.0.1:9/cam").items())


def test_a_stream_that_breaks_off_keeps_what_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last item says so."""
    monkeypatch.setitem(sys.modules, "av", Pretend([0, 1], OSError("no more of rtsp://a:b@cam/x")))
    first, *others = Live("rtsp://a:b@cam/x").items()
    assert read_rgb(first.load()).shape == (2, 3, 3)
    with pytest.raises(InvalidInput, match="rtsp://cam/x cannot be read as a video: no more of"):
        others[-1].load()


def test_a_film_behind_an_address_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", Pretend(range(50), duration=5_000_000))
    live = Live("https://host/film.mp4")
    assert [item.frame for item in live.items()] == list(range(50))
    assert live.dropped == 0


def test_a_webcam_is_opened_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend = Pretend(range(3), duration=1)
    monkeypatch.setitem(sys.modules, "av", pretend)
    items = list(Live("/dev/video0").items())
    assert pretend.opened == ("/dev/video0", "v4l2", {})
    assert [item.name.partition("/")[0] for item in items] == ["dev-video0"] * 3


def test_a_camera_without_images_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", Pretend([], video=False))
    with pytest.raises(InvalidInput, match="has no images in it"):
        list(Live("rtsp://cam/x").items())


def test_of_frames_that_nobody_took_the_newest_is_kept() -> None:
    newest = _Newest()
    assert all(newest.put(n, None, False) for n in range(5))
    assert newest.take() == (4, None) and newest.dropped == 4
    newest.put(5, None, False)
    newest.end(None)
    assert newest.take() == (5, None) and newest.take() is None


def test_whoever_waits_for_a_taker_ends_with_the_job() -> None:
    newest = _Newest()
    newest.put(0, None, True)
    wanted: list[bool] = []
    thread = threading.Thread(target=lambda: wanted.append(newest.put(1, None, True)))
    thread.start()
    newest.stop()
    thread.join(30)
    assert wanted == [False]


class Pretend:
    """Stands for PyAV: opens one film, however it is called."""

    def __init__(
        self,
        numbers: Any,
        error: Exception | None = None,
        *,
        duration: int | None = None,
        video: bool = True,
    ) -> None:
        self._numbers, self._error = numbers, error
        self.duration = duration
        self.streams = self
        self.video = [0] if video else []
        self.opened: tuple[str, str | None, dict[str, str]] | None = None

    def open(self, url: str, format: str | None, options: dict[str, str], timeout: float) -> Any:
        self.opened = (url, format, options)
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def decode(self, video: int) -> Any:
        for _ in self._numbers:
            yield PretendFrame()
        if self._error is not None:
            raise self._error


class PretendFrame:
    rotation = 0

    def to_ndarray(self, format: str) -> Any:
        return np.zeros((2, 3, 3), np.uint8)
