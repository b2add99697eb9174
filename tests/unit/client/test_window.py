"""Many at a time, and no more than that."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest

from fcn_client import AsyncFcnClient, FcnClient, FcnError, InvalidInput
from fcn_client.aio.window import in_window as in_tasks
from fcn_client.progress import length, progress_bar
from fcn_client.sync.window import in_window as on_threads
from service import errors
from tests.unit.client.fakes import SERVERS, Script, refusal


class Work:
    """Takes `slow[index]` seconds, and knows how many were at it at once."""

    def __init__(self, slow: dict[int, float] | None = None) -> None:
        self.slow, self.lock = slow or {}, threading.Lock()
        self.busy = self.most = 0

    def _count(self, by: int) -> None:
        with self.lock:
            self.busy += by
            self.most = max(self.most, self.busy)

    def __call__(self, index: int, item: int) -> int:
        self._count(1)
        time.sleep(self.slow.get(index, 0.005))
        self._count(-1)
        return 10 * item

    async def later(self, index: int, item: int) -> int:
        self._count(1)
        try:
            await asyncio.sleep(self.slow.get(index, 0.005))
        finally:
            self._count(-1)
        return 10 * item


def test_threads_keep_order_and_bound() -> None:
    work = Work({0: 0.05})
    assert list(on_threads(work, range(12), 3, ordered=True)) == [10 * n for n in range(12)]
    assert work.most == 3


def test_threads_as_they_finish() -> None:
    answers = list(on_threads(Work({0: 0.1}), range(6), 3, ordered=False))
    assert sorted(answers) == [10 * n for n in range(6)]
    assert answers[-1] == 0


async def test_tasks_keep_order_and_bound() -> None:
    work = Work({0: 0.05})
    answers = [a async for a in in_tasks(work.later, range(12), 3, ordered=True)]
    assert answers == [10 * n for n in range(12)]
    assert work.most == 3


async def test_tasks_as_they_finish_from_an_async_source() -> None:
    async def source() -> AsyncIterator[int]:
        for n in range(6):
            yield n

    answers = [a async for a in in_tasks(Work({0: 0.1}).later, source(), 3, ordered=False)]
    assert sorted(answers) == [10 * n for n in range(6)]
    assert answers[-1] == 0


def endless(read: list[int]) -> Iterator[int]:
    n = 0
    while True:
        read.append(n)
        yield n
        n += 1


def test_threads_read_the_source_no_further_than_needed() -> None:
    read: list[int] = []
    answers = on_threads(Work(), endless(read), 2, ordered=True)
    assert [next(answers) for _ in range(3)] == [0, 10, 20]
    answers.close()
    assert len(read) <= 3 + 4


async def test_tasks_are_cancelled_when_the_caller_stops() -> None:
    read: list[int] = []
    work = Work({1: 60.0, 2: 60.0})
    async with aclosing(in_tasks(work.later, endless(read), 2, ordered=False)) as answers:
        assert await anext(answers) == 0
    assert work.busy == 0 and len(read) <= 5


@pytest.mark.parametrize("in_flight", [0, -1])
async def test_in_flight_is_at_least_one(in_flight: int) -> None:
    with pytest.raises(InvalidInput, match="give 1 or more"):
        list(on_threads(Work(), [1], in_flight, ordered=True))
    with pytest.raises(InvalidInput, match="give 1 or more"):
        _ = [a async for a in in_tasks(Work().later, [1], in_flight, ordered=True)]


@pytest.mark.parametrize("transport", SERVERS)
async def test_one_failure_stops_no_other(
    transport: str, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Script([refusal(errors.InvalidImage)])
    with SERVERS[transport](script) as url, FcnClient(url) as client:
        pictures = [b"x", b"", b"y"]
        outcomes = list(client.segment_many(pictures, in_flight=1, progress=True))
        assert [(o.index, o.image, o.ok) for o in outcomes] == [
            (0, b"x", False),
            (1, b"", False),
            (2, b"y", True),
        ]
        assert [type(o.error).__name__ for o in outcomes[:2]] == ["InvalidImage", "InvalidInput"]
        with pytest.raises(FcnError, match="do this"):
            outcomes[0].unwrap()
        assert outcomes[2].unwrap().value.shape == (2, 3)
        assert "3/3" in capsys.readouterr().err
        async with AsyncFcnClient(url) as other:
            later = [o async for o in other.segment_many(pictures, in_flight=2, progress=True)]
        assert [(o.index, o.ok) for o in later] == [(0, True), (1, False), (2, True)]
        assert "3/3" in capsys.readouterr().err


def test_a_bar_without_tqdm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(FcnError, match="pip install tqdm"), progress_bar(True, 3):
        pass
    with progress_bar(False, 3) as bar:
        bar.update()


def test_length_where_it_is_known() -> None:
    assert length([1, 2]) == 2
    assert length(n for n in range(3)) is None
