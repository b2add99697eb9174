from __future__ import annotations

import os
from pathlib import Path

from service.changes import SettledChanges, file_stamp


def watching(**seen: int) -> SettledChanges[int]:
    return SettledChanges(seen)


def test_what_stays_is_not_returned() -> None:
    watch = watching(a=1)
    assert watch.settled({"a": 1}) == set()
    assert watch.settled({"a": 1}) == set()


def test_a_change_is_returned_once_at_the_second_look() -> None:
    watch = watching(a=1, b=1)
    assert watch.settled({"a": 2, "b": 1}) == set()
    assert watch.settled({"a": 2, "b": 1}) == {"a"}
    assert watch.settled({"a": 2, "b": 1}) == set()


def test_what_goes_on_changing_waits() -> None:
    watch = watching(a=1)
    for size in (2, 3, 4):
        assert watch.settled({"a": size}) == set()
    assert watch.settled({"a": 4}) == {"a"}


def test_what_is_new_or_gone_waits_too() -> None:
    watch = watching(old=1)
    assert watch.settled({"new": 1}) == set()
    assert watch.settled({"new": 1}) == {"new", "old"}
    assert watch.settled({"new": 1}) == set()


def test_what_was_taken_back_was_no_change() -> None:
    watch = watching(a=1)
    assert watch.settled({"a": 2}) == set()
    assert watch.settled({"a": 1}) == set()
    assert watch.settled({"a": 1}) == set()
    assert watch.settled({}) == set()
    assert watch.settled({"a": 1}) == set()


def test_what_cannot_be_seen_is_not_gone() -> None:
    watch = watching(a=1)
    assert watch.settled({}, keep={"a"}) == set()
    assert watch.settled({}, keep={"a"}) == set()
    assert watch.settled({"a": 1}) == set()


def test_what_could_not_be_acted_on_is_returned_again_until_it_was() -> None:
    watch = watching(a=1)
    watch.settled({"a": 2})
    for _ in range(3):
        assert watch.settled({"a": 2}) == {"a"}
        watch.again("a")
    assert watch.settled({"a": 3}) == set(), "it changes once more: it may be half written"
    assert watch.settled({"a": 3}) == {"a"}
    assert watch.settled({"a": 3}) == set()


def test_a_files_stamp_differs_when_the_file_does(tmp_path: Path) -> None:
    file = tmp_path / "file"
    assert file_stamp(file) is None
    file.write_text("one")
    before = file_stamp(file)
    assert before is not None and file_stamp(file) == before
    status = file.stat()
    other = tmp_path / "other"
    other.write_text("two")  # as long, and as old
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(file)
    assert file_stamp(file) != before
