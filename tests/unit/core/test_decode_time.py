"""Gives decodes in processes a time of their own: what waits for a processor is no hang."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.core.images import processes
from service.errors import InvalidImage, ShuttingDown
from tests.drawing import encode, street
from tests.unit.core.test_decode_processes import (
    JPEG,
    changed_workers,
    decoding,
    gone,
    here,
    pid,
    read,
    stop,
)
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


def judged(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """Returns a list that grows by the time of a processor at each look at a worker."""
    looks: list[float | None] = []
    look = processes._processor_s

    def looked(number: int) -> float | None:
        looks.append(look(number))
        return looks[-1]

    monkeypatch.setattr(processes, "_processor_s", looked)
    return looks


def test_a_worker_that_sleeps_for_ever_costs_its_request_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "_LEAST_S", 0.2)
    monkeypatch.setattr(processes, "_PATIENCE", 3)
    with decoding() as (decoder, lost):
        before = pid(decoder)
        stop(before)
        looks = judged(monkeypatch)
        with pytest.raises(InvalidImage, match="took too long"):
            read(decoder, JPEG)
        assert len(looks) == 1 + 3, "at the begin, and after each time that it may work"
        assert looks[0] is not None and looks[-1] == looks[0]
        assert lost == ["hang"]
        until(lambda: gone(before))
        monkeypatch.setattr(processes, "_LEAST_S", 60.0)  # a busy machine is no hang
        assert (read(decoder, JPEG) == here(JPEG)).all()
        assert pid(decoder) != before
        assert lost == ["hang"]


def test_a_worker_that_no_processor_had_time_for_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "_LEAST_S", 0.2)
    monkeypatch.setattr(processes, "_PATIENCE", 10_000)
    with decoding() as (decoder, lost), ThreadPoolExecutor() as pool:
        before = pid(decoder)
        stop(before)
        looks = judged(monkeypatch)
        answer = pool.submit(read, decoder, JPEG)
        until(lambda: len(looks) > 2)  # its time is over, by the clock
        os.kill(before, signal.SIGCONT)
        assert (answer.result(20) == here(JPEG)).all()
        assert pid(decoder) == before
        assert lost == []


def test_a_worker_that_works_for_ever_is_ended_after_its_own_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "_LEAST_S", 0.2)
    monkeypatch.setattr(processes, "_PATIENCE", 10_000)  # the other bound is out of reach
    loop = (
        "true = service.core.images.worker.decode_reduced; "
        "service.core.images.worker.decode_reduced = lambda body, *a, **o: "
        "any(iter(int, 1)) if body[:1] == b'B' else true(body, *a, **o); "
    )
    changed_workers(monkeypatch, loop)
    with decoding() as (decoder, lost):
        read(decoder, JPEG)
        before = pid(decoder)
        looks = judged(monkeypatch)
        with pytest.raises(InvalidImage, match="took too long"):
            read(decoder, encode(street(40, 56), "BMP"))
        assert looks[0] is not None and looks[-1] is not None
        assert looks[-1] - looks[0] >= 0.19, "a tick less where its time is rounded"
        assert lost == ["hang"]
        until(lambda: gone(before))
        monkeypatch.setattr(processes, "_LEAST_S", 60.0)
        assert (read(decoder, JPEG) == here(JPEG)).all()
        assert pid(decoder) != before


def test_where_proc_tells_nothing_the_clock_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_LEAST_S", 0.2)
    monkeypatch.setattr(processes, "_PATIENCE", 10_000)
    monkeypatch.setattr(processes, "_processor_s", lambda _: None)
    with decoding() as (decoder, lost):
        stop(pid(decoder))
        with pytest.raises(InvalidImage, match="took too long"):
            read(decoder, JPEG)
        assert lost == ["hang"]


def test_a_decode_without_a_free_descriptor_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """So /proc cannot be read, and nobody needs what it would tell."""

    def none_is_free(_: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(processes, "_LEAST_S", 60.0)
    with decoding() as (decoder, lost):
        before = pid(decoder)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", none_is_free)
            answer = read(decoder, JPEG)
        assert (answer == here(JPEG)).all()
        assert pid(decoder) == before
        assert lost == []


def test_at_the_end_nobody_is_patient_with_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that no processor had time for since it was made does not end with its parent yet."""
    monkeypatch.setattr(processes, "_LEAST_S", 0.2)
    monkeypatch.setattr(processes, "_PATIENCE", 10_000)
    changed_workers(monkeypatch, "service.core.images.worker.confine_worker = lambda: 0; ")
    with decoding() as (decoder, lost), ThreadPoolExecutor() as pool:
        before = pid(decoder)
        stop(before)
        answer = pool.submit(read, decoder, JPEG)
        until(decoder._free.empty)
        decoder.close()
        with pytest.raises(ShuttingDown):
            answer.result(20)
        until(lambda: gone(before))
        assert lost == []


def test_the_time_of_a_processor_is_that_of_the_process_that_is_meant() -> None:
    before = os.times()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            until(lambda: (processes._processor_s(busy.pid) or 0) > 0.3)
            used_s = processes._processor_s(busy.pid)
        finally:
            busy.kill()
    after = os.times()
    children_s = sum(after[2:4]) - sum(before[2:4])
    assert used_s is not None and 0.3 < used_s < children_s + 0.05, "rounded to ticks, both"
    assert processes._processor_s(busy.pid) is None, "it is gone"
