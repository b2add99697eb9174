"""`fcn predict`: a model in this process or a server, the same files."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cli.main import main
from fcn_client.errors import FcnConnectionError, InvalidInput, NotAuthenticated
from fcn_client.images import overlay
from fcn_client.predict import Folder, find, predict
from fcn_client.predict.frames import frames, turned
from tests.conftest import need
from tests.drawing import animated_gif, encode, jpeg, png, read_png, street
from tests.serving import Server, running
from tests.tiny_models import CLASSES, expected_label_map, write_model
from tests.unit.client.fakes import Drawn

PALETTE = np.zeros((256, 3), np.uint8)
PALETTE[:3] = [c.color for c in CLASSES]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCN_INTRA_OP_THREADS", "1")
    monkeypatch.setenv("FCN_INSTANCES", "1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("models")
    write_model(repository, "tiny", 1)
    write_model(repository, "tiny", 2, bias=(0, 300, 0))
    write_model(repository, "other", 1)
    with running(repository, default_model="tiny") as server:
        yield server


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images of one stem, one in a folder, one that is none, and a file of another kind."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.png").write_bytes(png(street(seed=1)))
    (folder / "a.jpg").write_bytes(jpeg(street(seed=2)))
    (folder / "deep" / "b.png").write_bytes(png(street(20, 30, seed=3)))
    (folder / "broken.png").write_bytes(png(street())[:100])
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "models", "tiny", 1)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    """Exit code and the JSON report."""
    code = main(["predict", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((out / "shares.csv").read_text())))


def files(out: Path) -> dict[str, bytes]:
    """Every file below `out` but the journal, by its path."""
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in out.rglob("*")
        if p.is_file() and p.name != "predict.jsonl"
    }


def test_a_folder(photos: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photos / "out"
    code, report = run(capsys, photos, "--out", out, "--local", model, "--recursive")
    assert code == 1
    assert (report["done"], report["skipped"], report["ignored"]) == (3, 0, 1)
    (failure,) = report["failed"]
    assert failure["source"] == "broken.png" and "truncated or damaged" in failure["error"]
    names = {"a.jpg.png", "a.png.png", "deep/b.png"}
    assert set(files(out)) == {
        "shares.csv",
        *(f"{kind}/{name}" for kind in ("label_maps", "overlays") for name in names),
    }
    rgb = street(20, 30, seed=3)
    labels = expected_label_map(rgb)
    np.testing.assert_array_equal(read_png(files(out)["label_maps/deep/b.png"]), labels)
    np.testing.assert_array_equal(
        read_png(files(out)["overlays/deep/b.png"]), overlay(rgb, labels, PALETTE, 0.5)
    )
    table = rows(out)
    assert [row["source"] for row in table] == ["a.jpg", "a.png", "deep/b.png"]
    assert (table[2]["height"], table[2]["width"], table[2]["version"]) == ("20", "30", "1")
    for info in CLASSES:
        assert float(table[2][info.name]) == pytest.approx((labels == info.id).mean(), abs=1e-6)
    assert table[2]["void"] == "0.000000"


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_a_server_gives_the_same_files(
    transport: str, server: Server, photos: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.png").unlink()
    url = {"rest": server.url, "grpc": f"grpc://{server.target}"}[transport]
    options = ("--model-version", 1, "--write", "label_map,color,overlay", "--alpha", 0.3)
    local, remote = photos / "local", photos / "remote"
    assert run(capsys, photos, "--out", local, "--local", model, *options)[0] == 0
    code, report = run(capsys, photos / "a.png", "--out", remote, "--url", url, *options)
    assert (code, report["done"], report["version"]) == (0, 1, "1")
    for kind in ("label_maps", "colors", "overlays"):
        assert files(remote)[f"{kind}/a.png"] == files(local)[f"{kind}/a.png.png"]
    body = server.rest.post(
        "/segment?version=1&output=overlay&alpha=0.3", content=(photos / "a.png").read_bytes()
    ).content
    np.testing.assert_array_equal(read_png(files(remote)["overlays/a.png"]), read_png(body))


def test_only_what_is_missing_is_done_again(
    photos: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.png").unlink()
    words = (photos, "--out", photos / "out", "--local", model, "--recursive")
    out = photos / "out"
    assert run(capsys, *words)[1]["done"] == 3
    before = files(out)

    def again(*more: object) -> tuple[int, int]:
        report = run(capsys, *words, *more)[1]
        return report["done"], report["skipped"]

    assert again() == (0, 3)
    (out / "overlays" / "a.jpg.png").unlink()  # an output is gone
    assert again() == (1, 2)
    with (out / "predict.jsonl").open("a") as journal:
        journal.write('{"name": "deep/b", "sou')  # the job was killed while it wrote
    assert again() == (0, 3)
    os.utime(photos / "a.png", (1, 1))  # the image changed
    assert again() == (1, 2)
    assert again() == (0, 3)  # its line did not go under with the one that was cut off
    assert files(out) == before
    assert again("--alpha", 0.9) == (3, 0)
    assert again("--alpha", 0.9, "--write", "label_map,overlay,color") == (3, 0)
    assert again("--alpha", 0.9, "--write", "overlay") == (0, 3)
    assert again("--afresh", "--alpha", 0.9) == (3, 0)
    os.utime(model, (1, 1))  # the same file, only touched
    assert again("--alpha", 0.9) == (0, 3)


def test_classes_that_are_not_kept_are_void(
    photos: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (photos / "a.png", "--local", model, "--write", "label_map")
    assert run(capsys, *words, "--out", photos / "out", "--classes", "red,2")[0] == 0
    labels = expected_label_map(street(seed=1))
    kept = np.where(labels == 1, 255, labels)
    np.testing.assert_array_equal(read_png(files(photos / "out")["label_maps/a.png"]), kept)
    (row,) = rows(photos / "out")
    assert float(row["void"]) == pytest.approx((labels == 1).mean(), abs=1e-6)
    before = "--classes: 'tree' is not one of this model's: red, green, blue"
    assert main(["predict", *map(str, words), "--out", str(photos / "x"), "--classes", "tree"]) == 1
    assert before in capsys.readouterr().err and not (photos / "x").exists()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_frames(kind: str, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [Image.fromarray(street(seed=n)) for n in range(4)]
    options = {"lossless": True} if kind == "WEBP" else {}
    film = tmp_path / f"film.{kind.lower()}"
    film.write_bytes(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    out = tmp_path / "out"
    code, report = run(capsys, film, "--out", out, "--local", model, "--every", 2)
    assert (code, report["done"]) == (0, 2)
    assert sorted(files(out / "label_maps")) == ["film/000000.png", "film/000002.png"]
    assert [(r["source"], r["frame"]) for r in rows(out)] == [(film.name, "0"), (film.name, "2")]
    if kind != "GIF":  # which has fewer colours
        expected = expected_label_map(street(seed=2))
        np.testing.assert_array_equal(read_png(files(out)["label_maps/film/000002.png"]), expected)
    report = run(capsys, film, "--out", out, "--local", model)[1]
    assert (report["done"], report["skipped"]) == (2, 2)


def test_a_film_that_breaks_off(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The frames before are done, and the others' files are."""
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "a.gif").write_bytes(b"GIF89a")
    (folder / "b.gif").write_bytes(animated_gif(2))
    code, report = run(capsys, folder, "--out", tmp_path / "out", "--local", model)
    assert (code, report["done"]) == (1, 2)
    (failure,) = report["failed"]
    assert failure["source"] == "a.gif"
    assert "cannot be read as an image with frames" in failure["error"]


def test_mp4(tmp_path: Path) -> None:
    try:
        import av
    except ModuleNotFoundError:
        av = None
    need(av is not None, "PyAV (pip install av) decodes videos")
    path = tmp_path / "film.mp4"
    sent = [np.full((48, 64, 3), 60 * n, np.uint8) for n in range(3)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for rgb in sent:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    seen = list(frames(path))
    assert len(seen) == 3
    for rgb, expected in zip(seen, sent, strict=True):
        np.testing.assert_allclose(rgb.astype(int), expected.astype(int), atol=12)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InvalidInput, match="cannot be read as a video"):
        list(frames(path))


def test_a_video_without_its_decoder_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InvalidInput, match="pip install av$"):
        list(frames(tmp_path / "film.mp4"))


def test_turned_frames_are_upright() -> None:
    rgb = street(4, 6)

    class Frame:
        rotation = -90  # to be shown turned clockwise

        def to_ndarray(self, format: str) -> np.ndarray[Any, Any]:
            return rgb

    np.testing.assert_array_equal(turned(Frame()), np.rot90(rgb, -1))


WITHDRAWN = NotAuthenticated("the key was taken away")


@pytest.mark.parametrize(
    "end", [FcnConnectionError("the server is gone"), WITHDRAWN, KeyboardInterrupt()], ids=str
)
def test_a_job_that_ends_early_goes_on_later(end: BaseException, tmp_path: Path) -> None:
    film = tmp_path / "film.gif"
    film.write_bytes(animated_gif(5))
    out = tmp_path / "out"

    def third(call: int) -> None:
        if call == 3:
            raise end

    first = Drawn(third)
    with pytest.raises(type(end)):
        predict(find(film).items(), first, Folder(out, first), in_flight=1)
    assert len(rows(out)) == 2
    second = Drawn()
    summary = predict(find(film).items(), second, Folder(out, second), progress=True, total=5)
    assert (summary.done, summary.skipped, second.calls) == (3, 2, 3)
    assert len(rows(out)) == 5
    assert list(out.rglob("*.part")) == []


def test_an_answer_that_is_no_label_map_fails_its_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(street()))

    class Wrong(Drawn):
        def __init__(self, body: bytes) -> None:
            super().__init__()
            self.body = body

        def __call__(self, body: bytes) -> bytes:
            return self.body

    for body, why in ((b"?", "no PNG"), (png(street()), "is a RGB image")):
        labeller = Wrong(body)
        items = find(tmp_path / "a.png").items()
        summary = predict(items, labeller, Folder(tmp_path / "out", labeller))
        assert why in summary.failures[0][2]


def test_a_file_that_vanished_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(street()))
    (tmp_path / "b.png").write_bytes(png(street()))
    found = find(tmp_path)
    (tmp_path / "a.png").unlink()
    labeller = Drawn()
    summary = predict(found.items(), labeller, Folder(tmp_path / "out", labeller))
    assert summary.done == 1
    assert summary.failures == [("a.png", None, "cannot be read: No such file or directory")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.png"], "nothing.png does not exist"),
        (["."], "holds no image or video (try --recursive)"),
        (["deep/b.png", "--write", "logits"], "--write logits: use label_map, overlay, color"),
        (["deep/b.png", "--alpha", "2"], "alpha is 2: give a number from 0 to 1"),
        (["deep/b.png", "--local", "no.onnx"], "no.onnx does not exist"),
        (
            ["deep/b.png", "--local", "two"],
            "two: several models are served, say which: one, other (--model, --model-version)",
        ),
        (["deep/b.png", "--local", "two", "--model", "x"], "no model 'x'"),
        (["deep/b.png", "--model-version", "7"], "model tiny has no version '7': choose from 1"),
        (["deep/b.png", "--url", "localhost:8000"], "is no server's address"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals_are_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.png").write_bytes(png(street()))
    write_model(tmp_path / "models", "tiny", 1)
    write_model(tmp_path / "two", "one", 1)
    write_model(tmp_path / "two", "other", 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FCN_MODEL_REPOSITORY", "models")
    assert main(["predict", *words, "--out", "out"]) == 1
    err = capsys.readouterr().err.splitlines()
    assert message in err[-1] and err[-1].startswith("fcn: ")


def test_models_of_a_server_are_chosen_by_name(
    server: Server, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (photos / "a.png", "--out", photos / "out", "--url", server.url)
    report = run(capsys, *words, "--model", "other")[1]
    assert (report["model"], report["version"], report["done"]) == ("other", "1", 1)
    assert main(["predict", *map(str, words)]) == 1
    says = "made by another network, other 1 fp32, and this is tiny 2 fp32: give another --out"
    assert says in capsys.readouterr().err
    assert run(capsys, *words, "--afresh")[1]["version"] == "2"
    for more, why in (
        (("--model", "x"), "has no model 'x': it has other, tiny"),
        (("--model-version", "9"), "model tiny has no version '9': it has 1, 2"),
        (("--classes", "1,tree"), "'tree' is not one of this model's: red, green, blue"),
    ):
        assert main(["predict", *map(str, words), *more]) == 1
        assert why in capsys.readouterr().err


def test_for_people(photos: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(photos), "--out", str(photos / "o"), "--local", str(model)]) == 1
    captured = capsys.readouterr()
    assert "2 done, 0 complete before, 1 failed, by tiny version 1" in captured.out
    assert "fcn: broken.png: Invalid image: the PNG file is truncated" in captured.err
