"""One odd item of `fcn predict` is one failure: reported, the same at every run, and no other's."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.main import main
from fcn_client.errors import InvalidInput
from fcn_client.predict import Folder, Summary, find, outputs, predict, writer
from tests.drawing import animated_gif, encode, png, street
from tests.tiny_models import write_model
from tests.unit.client.fakes import Drawn

IMAGE = png(street())


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two good ones; the tests add an odd one."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "z.png"):
        (folder / name).write_bytes(IMAGE)
    return folder


def job(images: Path, *, recursive: bool = False, **options: Any) -> Summary:
    out = images.parent / "out"
    labeller = Drawn()
    found = find(images, recursive=recursive, leave_out=out)
    return predict(found.items(), labeller, Folder(out, labeller, **options))


def listed(images: Path) -> list[str]:
    """The images of shares.csv, which must be UTF-8 with a line for each."""
    text = (images.parent / "out" / "shares.csv").read_bytes().decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len(text.splitlines()) - 1
    return [row["source"] for row in rows]


def make_name(name: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).write_bytes(IMAGE)

    return make


def dangling(folder: Path) -> None:
    (folder / "m.png").symlink_to("nowhere.png")


def loop(folder: Path) -> None:
    (folder / "m.png").symlink_to("m.png")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "m.png")


def directory(folder: Path) -> None:
    (folder / "m.png").mkdir()


def empty(folder: Path) -> None:
    (folder / "m.png").write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "source", "why"),
    [
        (make_name(b"caf\xe9.png"), r"caf\xe9.png", "its name is not UTF-8: rename it"),
        (make_name(b"\xed\xa0\x80.png"), r"\xed\xa0\x80.png", "its name is not UTF-8"),
        (make_name(b"two\nlines.png"), r"two\nlines.png", "its name has control characters"),
        (make_name(b"Icon\r.png"), r"Icon\r.png", "its name has control characters"),
        (make_name(b"\x1b[31m.png"), r"\x1b[31m.png", "its name has control characters"),
        (make_name("\u0085.png".encode()), r"\x85.png", "its name has control characters"),
        (dangling, "m.png", "is a link that leads nowhere"),
        (loop, "m.png", "cannot be read: Too many levels of symbolic links"),
        (pipe, "m.png", "is no file"),
        (directory, "m.png", "is a folder, not a file: --recursive looks into folders"),
        (empty, "m.png", "is empty"),
    ],
    ids=lambda value: "" if callable(value) else None,
)
def test_an_odd_file_fails_alone(
    make: Callable[[Path], None], source: str, why: str, images: Path
) -> None:
    make(images)
    first = job(images)
    assert (first.done, first.skipped) == (2, 0)
    ((failed, frame, said),) = first.failures
    assert (failed, frame) == (source, None) and why in said
    assert listed(images) == ["a.png", "z.png"]
    again = job(images)
    assert (again.done, again.skipped, again.kept) == (0, 2, 0)
    assert again.failures == first.failures
    assert listed(images) == ["a.png", "z.png"]


def test_a_folder_whose_name_is_not_utf8(images: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(images) + b"/\xe9t\xe9"))
    folder.mkdir()
    (folder / "m.png").write_bytes(IMAGE)
    summary = job(images, recursive=True)
    assert summary.done == 2
    assert [failure[0] for failure in summary.failures] == [r"\xe9t\xe9/m.png"]


@pytest.mark.parametrize("recursive", [False, True])
def test_a_file_that_may_not_be_looked_at(
    recursive: bool, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "m.png").write_bytes(IMAGE)
    status = Path.stat

    def refuse(self: Path, **options: Any) -> os.stat_result:
        if self.name == "m.png":
            raise PermissionError(errno.EACCES, "Permission denied")
        return status(self, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    summary = job(images, recursive=recursive)
    assert summary.done == 2
    assert summary.failures == [("m.png", None, "cannot be read: Permission denied")]


def test_a_folder_that_may_not_be_looked_into(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "shut").mkdir()
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if os.fspath(path).endswith("shut"):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    summary = job(images, recursive=True)
    assert summary.done == 2
    assert summary.failures == [("shut", None, "cannot be read: Permission denied")]


def test_a_folder_named_like_an_image_is_looked_into(images: Path) -> None:
    directory(images)
    (images / "m.png" / "b.png").write_bytes(IMAGE)
    assert (job(images, recursive=True).done, listed(images)) == (
        3,
        ["a.png", "m.png/b.png", "z.png"],
    )


def test_outputs_that_cannot_be_made(images: Path) -> None:
    """`a.png/x.png` has its outputs in the folder a.png, as which those of a.jpg are called."""
    (images / "a.png").unlink()
    (images / "a.jpg").write_bytes(IMAGE)
    (images / "a.png").mkdir()
    (images / "a.png" / "x.bmp").write_bytes(encode(street(), "BMP"))
    long = "n" * 251  # with .png 255 bytes, the most there are; with .jpg.png too many
    for suffix in (".png", ".jpg"):
        (images / (long + suffix)).write_bytes(IMAGE)
    first = job(images, recursive=True)
    assert first.done == 2
    why = [failure[2] for failure in first.failures]
    assert all(said.startswith("its outputs cannot be written: ") for said in why), why
    assert len(why) == 3 and sum("File name too long" in said for said in why) == 2
    again = job(images, recursive=True)
    assert (again.done, again.skipped) == (0, 2)
    assert [failure[0] for failure in again.failures] == [failure[0] for failure in first.failures]


def test_two_items_of_one_name(images: Path) -> None:
    (images / "film.gif").write_bytes(animated_gif(2))
    (images / "film").mkdir()
    (images / "film" / "000001.png").write_bytes(IMAGE)
    summary = job(images, recursive=True)
    assert summary.done == 4
    ((source, frame, why),) = summary.failures
    assert (source, frame) == ("film/000001.png", None)
    assert "would take the place of those of film.gif: rename it" in why


NAMES = ["Caf\u00e9.png", "Cafe\u0301.png", "CAF\u00c9.png"]


def test_names_that_differ_in_case_or_accents(images: Path) -> None:
    for name in NAMES:
        (images / name).write_bytes(IMAGE)
    assert (job(images).done, len(listed(images))) == (5, 5)


def test_names_that_are_one_where_the_outputs_are(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS and Windows take them for one; the images may be in a folder that does not."""
    for name in NAMES:
        (images / name).write_bytes(IMAGE)
    monkeypatch.setattr(outputs, "_folds", lambda folder: True)
    first = job(images)
    assert (first.done, len(first.failures)) == (3, 2)
    assert {why.partition(" of ")[0] for _, _, why in first.failures} == {
        "its outputs would take the place"
    }
    again = job(images)
    assert (again.done, again.skipped, again.failures) == (0, 3, first.failures)


def test_what_nobody_expected_fails_alone(images: Path) -> None:
    class Odd(Drawn):
        calls = 0

        def __call__(self, image: bytes) -> bytes:
            self.calls += 1
            if self.calls == 1:
                raise ZeroDivisionError("a bug\nof two lines")
            if self.calls == 2:  # another size than the image has
                return super().__call__(png(np.zeros((3, 4, 3), np.uint8)))
            return super().__call__(image)

    (images / "m.png").write_bytes(IMAGE)
    labeller = Odd()
    folder = Folder(images.parent / "out", labeller)
    summary = predict(find(images).items(), labeller, folder, in_flight=1)
    assert summary.done == 1
    assert summary.failures[0][2] == r"ZeroDivisionError: a bug\nof two lines"
    assert "the label map is [3, 4], and the image [24, 32]" in summary.failures[1][2]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_ends_the_job(
    number: int, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, body: bytes) -> None:
        if path.name != outputs.SHARES:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writer, "replace", full)
    with pytest.raises(OSError, match=os.strerror(number)):
        job(images)


def test_a_folder_of_an_earlier_version_with_such_a_name(images: Path) -> None:
    job(images)
    journal = images.parent / "out" / "predict.jsonl"
    (line, *_) = journal.read_text().splitlines()
    odd = json.loads(line) | {"name": "caf\udce9", "source": "caf\udce9.png"}
    with journal.open("a") as file:
        file.write(json.dumps(odd) + "\n")
    assert job(images).skipped == 2
    assert listed(images) == ["a.png", "z.png"]


@pytest.mark.parametrize("out", ["images", "."])
def test_outputs_are_not_written_among_the_images(out: str, images: Path) -> None:
    with pytest.raises(InvalidInput, match="is where the images are: give another --out"):
        find(images, leave_out=images.parent / out)


def test_every_file_stays_utf8(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also the report, where the folder of the outputs is not either."""
    make_name(b"caf\xe9.png")(images)
    model = write_model(images.parent / "models", "tiny", 1)
    out = Path(os.fsdecode(os.fsencode(images.parent) + b"/sort\xe9e"))
    words = ["predict", str(images), "--out", str(out), "--local", str(model)]
    code = main([*words, "--annotations", "coco,label-studio", "--json"])
    report = json.loads(capsys.readouterr().out)
    json.dumps(report, ensure_ascii=False).encode()
    assert (code, report["done"]) == (1, 2)
    assert [failure["source"] for failure in report["failed"]] == [r"caf\xe9.png"]
    assert report["out"].endswith(r"/sort\xe9e")
    for path in out.glob("*.*"):
        path.read_bytes().decode()
    assert main(words) == 1
    captured = capsys.readouterr()
    assert captured.err == "fcn: caf\\xe9.png: its name is not UTF-8: rename it\n"
    assert "0 done, 2 complete before, 1 failed" in captured.out


def test_a_second_run_says_what_was_there(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(images.parent / "models", "tiny", 1)
    out = images.parent / "out"
    other = images.parent / "other"
    other.mkdir()
    (other / "a.png").write_bytes(png(street(seed=1)))

    def said(folder: Path) -> str:
        words = ["predict", str(folder), "--out", str(out), "--local", str(model)]
        assert main(words) == 0
        return capsys.readouterr().out

    assert "2 done, 0 complete before, 0 failed, by tiny version 1\n" in said(images)
    assert (
        "1 done (1 in place of others), 0 complete before, 0 failed, by tiny version 1; 1 of other "
        "runs are there, too" in said(other)
    )
