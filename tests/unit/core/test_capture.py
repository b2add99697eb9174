from __future__ import annotations

import threading

import pytest

from service.core.engines.capture import Captures


def started(work: object) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)  # type: ignore[arg-type]
    thread.start()
    return thread


def test_other_uses_go_on_beside_each_other() -> None:
    captures = Captures()
    both = threading.Barrier(2, timeout=5)

    def use() -> None:
        with captures.none():
            both.wait()

    threads = [started(use), started(use)]
    for thread in threads:
        thread.join(5)
    assert not both.broken


def test_a_capture_waits_for_the_others_and_they_for_it() -> None:
    captures = Captures()
    events: list[str] = []
    leave, captured = threading.Event(), threading.Event()

    def capture() -> None:
        with captures.one():
            events.append("captures")
            captured.wait(5)
            events.append("captured")

    def use() -> None:
        with captures.none():
            events.append("uses")

    def first() -> None:
        with captures.none():
            leave.wait(5)
            events.append("leaves")

    threads = [started(first)]
    while not captures._others:
        pass
    threads.append(started(capture))
    while not captures._waiting:
        pass
    threads.append(started(use))  # came after the capture, so it goes after it
    threads[2].join(0.05)
    assert events == []
    leave.set()
    threads[2].join(0.05)
    captured.set()
    for thread in threads:
        thread.join(5)
    assert events == ["leaves", "captures", "captured", "uses"]


def test_what_fails_inside_leaves_the_way_free() -> None:
    captures = Captures()
    for way in (captures.one, captures.none):
        with pytest.raises(ValueError), way():
            raise ValueError
    with captures.one():
        pass
    with captures.none():
        pass
