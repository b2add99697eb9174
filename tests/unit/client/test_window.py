"""Many at a time, and no more than that."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest

from fcn_client import FcnError, InvalidInput
from fcn_client.aio.window import in_window as in_tasks
from fcn_client.progress import length, progress_bar
from fcn_client.sync.window import in_window as on_threads
from service import errors
from tests.unit.client.clients import EITHER, Awaited, Client, later
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


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("way", ["threads", "tasks", "an async source"])
async def test_order_and_bound(way: str, ordered: bool) -> None:
    work = Work({0: 0.3})
    if way == "threads":
        answers = list(on_threads(work, range(12), 3, ordered))
    else:
        source = range(12) if way == "tasks" else later(range(12))
        answers = [a async for a in in_tasks(work.later, source, 3, ordered)]
    assert sorted(answers) == [10 * n for n in range(12)]
    assert (answers[0] == 0) == ordered, "the first is the slowest"
    assert work.most == 3


def endless(read: list[int]) -> Iterator[int]:
    while True:
        read.append(len(read))
        yield read[-1]


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
@EITHER
def test_in_flight_is_at_least_one(in_flight: int, client_of: Client) -> None:
    with (
        client_of("http://127.0.0.1:9") as client,
        pytest.raises(InvalidInput, match="give 1 or more"),
    ):
        list(client.segment_many([b"x"], in_flight=in_flight))


@pytest.mark.parametrize("transport", SERVERS)
@EITHER
def test_one_failure_stops_no_other(
    transport: str, client_of: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Script([refusal(errors.InvalidImage)])
    with SERVERS[transport](script) as url, client_of(url) as client:
        images = [b"x", b"", b"y"]
        sent: Any = later(images) if client_of is Awaited else images
        outcomes = list(client.segment_many(sent, in_flight=1, progress=True))
        assert [(o.index, o.image, o.ok) for o in outcomes] == [
            (0, b"x", False),
            (1, b"", False),
            (2, b"y", True),
        ]
        assert [type(o.error).__name__ for o in outcomes[:2]] == ["InvalidImage", "InvalidInput"]
        with pytest.raises(FcnError, match="do this"):
            outcomes[0].unwrap()
        assert outcomes[2].unwrap().value.shape == (2, 3)
        list(client.segment_many(images, progress=True))
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
