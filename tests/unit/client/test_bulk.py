"""`fcn predict --ray`, as far as it can be tried without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cli._bulk import Job, Known, Worker, _describe
from cli._bulk_sources import Entry, Source
from cli.main import main
from fcn_client.errors import InvalidInput
from fcn_client.predict.outputs import JOURNAL, read_record
from fcn_client.predict.writer import Writer
from service.settings import load_settings
from tests.drawing import animated_gif, png, read_png, street
from tests.tiny_models import expected_label_map, write_model


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.png").write_bytes(png(street(seed=1)))
    (folder / "a.jpg").write_bytes(b"no image")
    (folder / "deep" / "b.png").write_bytes(png(street(seed=2)))
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_and_its_address_are_one(scheme: str, photos: Path, tmp_path: Path) -> None:
    source = Source(f"{scheme}{photos}")
    found = source.listing(recursive=True, leave_out=tmp_path / "out")
    named = [(entry.source, entry.name) for entry in found.entries]
    assert sorted(named) == [
        ("a.jpg", "a.jpg"),
        ("a.png", "a.png"),
        ("deep/b.png", "deep/b"),
    ]
    assert found.ignored == 1
    bodies = {entry.source: source.read(entry) for entry in found.entries}
    assert bodies["deep/b.png"] == (photos / "deep" / "b.png").read_bytes()
    flat = source.listing(recursive=False, leave_out=tmp_path / "out")
    assert {entry.source for entry in flat.entries} == {"a.jpg", "a.png"}


def test_a_file_that_is_written_again_is_another(photos: Path, tmp_path: Path) -> None:
    source = Source(f"file://{photos}/a.png")
    (before,) = source.listing(recursive=False, leave_out=tmp_path / "out").entries
    (photos / "a.png").write_bytes((photos / "a.png").read_bytes())
    (after,) = source.listing(recursive=False, leave_out=tmp_path / "out").entries
    assert (before.source, before.size) == (after.source, after.size) == ("a.png", after.size)
    assert before.changed != after.changed


def test_a_video_is_no_work_for_several_nodes(photos: Path, tmp_path: Path) -> None:
    (photos / "film.gif").write_bytes(animated_gif())
    found = Source(str(photos)).listing(recursive=False, leave_out=tmp_path / "out")
    assert found.unusable == (("film.gif", "has frames: predict it without --ray"),)


class Denied(MemoryFileSystem):  # type: ignore[misc]  # it has no types
    """A bucket without rights."""

    protocol = "denied"

    def find(self, *args: Any, **more: Any) -> NoReturn:
        raise PermissionError("Access Denied")


class Sealed(MemoryFileSystem):  # type: ignore[misc]  # it has no types
    """A bucket with the right to list, and none to read."""

    protocol = "sealed"

    def find(self, path: str, *args: Any, **more: Any) -> dict[str, dict[str, Any]]:
        return {f"{path}/a.png": {"size": 1, "ETag": "x"}}

    def cat_file(self, *args: Any, **more: Any) -> NoReturn:
        raise PermissionError("Access Denied")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("denied://bucket", ("cannot be listed", "Access Denied", "rights to list")),
        ("nope://bucket", ("cannot be listed", "nope")),
        ("file:///nowhere/at/all", ("does not exist",)),
        ("memory://empty", ("does not exist",)),
    ],
)
def test_an_address_that_cannot_be_listed(url: str, words: Sequence[str], tmp_path: Path) -> None:
    fsspec.register_implementation("denied", Denied, clobber=True)
    with pytest.raises(InvalidInput) as raised:
        Source(url).listing(recursive=True, leave_out=tmp_path / "out")
    assert all(word in str(raised.value) for word in words), raised.value


def test_an_object_that_may_not_be_read_is_that_images_error(tmp_path: Path) -> None:
    fsspec.register_implementation("sealed", Sealed, clobber=True)
    source = Source("sealed://bucket")
    (entry,) = source.listing(recursive=True, leave_out=tmp_path / "out").entries
    with pytest.raises(InvalidInput, match="there is no right to"):
        source.read(entry)


def columns(entries: Sequence[Entry]) -> dict[str, Any]:
    return {name: np.array([getattr(entry, name) for entry in entries]) for name in Entry._fields}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    write_model(tmp_path / "models", "tiny", 1)
    return Job(tmp_path / "models", load_settings())


def work(job: Job, known: Known, source: Source, out: Path) -> list[dict[str, str]]:
    """Has a worker do all of a source, and returns its rows."""
    out.mkdir(exist_ok=True)
    (out / JOURNAL).touch()
    entries = source.listing(recursive=True, leave_out=out).entries
    worker = Worker(job, known, source, Writer(out, known.classes, ("label_map",), 0.5, {}))
    found = worker(columns(entries))
    worker.close()
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def test_a_worker_writes_outputs_and_tells_of_a_damaged_image(
    job: Job, photos: Path, tmp_path: Path
) -> None:
    known = _describe(job)
    assert isinstance(known, Known)
    rows = {row["source"]: row for row in work(job, known, Source(str(photos)), tmp_path / "out")}
    assert rows["a.jpg"]["error"] and not rows["a.jpg"]["record"]
    record = read_record(rows["deep/b.png"]["record"])
    assert (record.name, record.frame, record.height) == ("deep/b", None, 24)
    written = (tmp_path / "out" / "label_maps" / "deep" / "b.png").read_bytes()
    np.testing.assert_array_equal(read_png(written), expected_label_map(street(seed=2)))
    assert {row["fault"] for row in rows.values()} == {""}


def test_a_node_with_another_network_or_none_is_a_fault(
    job: Job, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli._bulk._node", lambda: "node 10.0.0.7")
    other = Known("tiny", "1", "tiny 1 fp32 0123456789abcdef", ())
    for row in work(job, other, Source(str(photos)), tmp_path / "out"):
        assert row["fault"].startswith(f"node 10.0.0.7: {job.model} is another network there")
    nowhere = Job(tmp_path / "nothing", load_settings())
    for row in work(nowhere, other, Source(str(photos)), tmp_path / "out"):
        assert "node 10.0.0.7" in row["fault"] and "does not exist" in row["fault"]
    said = _describe(nowhere)
    assert isinstance(said, str) and "does not exist" in said


def test_a_node_that_does_not_see_the_output_folder(job: Job, tmp_path: Path) -> None:
    from cli._bulk import _checked
    from fcn_client.errors import FcnError

    known = Known("tiny", "1", "", ())
    with pytest.raises(FcnError, match="all nodes share"):
        _checked(job, known, Writer(tmp_path / "elsewhere", (), (), 0.5, {}))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--url", "http://a:8000"), "leave --url out"),
        (("--frames", "3"), "are for frames"),
        (("--every", "3"), "are for frames"),
    ],
)
def test_what_is_not_for_ray_is_refused(
    more: Sequence[str],
    said: str,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(("predict", str(photos), "--ray", "--out", str(tmp_path), *more)) == 1
    assert said in capsys.readouterr().err
