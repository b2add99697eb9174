"""Turns of clients and of bulk work, in virtual time: who waits for whom; what is kept free."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.batching import policy as module
from service.core.batching.admission import Admission
from service.core.batching.policy import (
    BULK_SHARE,
    BatchPolicy,
    InferenceRequest,
)
from service.core.batching.queue import leaves_room
from service.core.images.header import Header
from service.core.types import Priority
from service.errors import Overloaded
from tests.unit.core import virtual
from tests.unit.core.arrivals import RUN_S, image_of, started
from tests.unit.core.fakes import Recorder
from tests.unit.core.queues import new_queue
from tests.unit.core.virtual import Machine

NAMES = ("a", "b", "c", "d")


def policy(max_batch: int = 1) -> BatchPolicy:
    return BatchPolicy(max_batch=max_batch, max_batch_pixels=1 << 30, age_cap_s=0.1)


def item(
    client: str, pixels: int = 100_000, priority: Priority = Priority.NORMAL, came_s: float = 0.0
) -> InferenceRequest:
    request = InferenceRequest(priority, None, cast(Any, None), client)
    request.pixels, request.kind, request.enqueued_s = pixels, pixels, came_s
    return request


def taken(queue: BatchPolicy, now: float = 0.0) -> list[InferenceRequest]:
    return queue.take(now, lambda pixels, images: 0.0)[0]


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.dictionaries(st.sampled_from(NAMES), st.integers(1, 3_000_000), min_size=2),
    max_batch=st.integers(1, 4),
    leaving=st.integers(0, 30),
)
def test_those_who_always_wait_are_given_the_same(
    sizes: dict[str, int], max_batch: int, leaving: int
) -> None:
    """To within one image, or batch, of each of the two; also when images leave the queue."""
    queue = policy(max_batch)
    waiting: dict[str, list[InferenceRequest]] = defaultdict(list)
    for client, pixels in sizes.items():
        for n in range(60):
            waiting[client].append(item(client, pixels, came_s=n / 1000))
            queue.add(waiting[client][-1])
    for client in sizes:
        for gone in waiting[client][:leaving]:
            queue.remove(gone)
    cost = {client: max_batch * item(client, pixels).cost_px for client, pixels in sizes.items()}
    given_px: Counter[str] = Counter()
    while all(queue.count(client) for client in sizes):
        for request in taken(queue, 100.0):
            given_px[request.client] += request.cost_px
        for one in sizes:
            for other in sizes:
                assert given_px[one] - given_px[other] <= cost[one] + cost[other]


@given(flood=st.integers(1, 200), served=st.integers(0, 100), others=st.integers(1, 3))
def test_one_image_waits_for_one_of_each_other_client(flood: int, served: int, others: int) -> None:
    queue = policy()
    for n in range(flood):
        for client in NAMES[:others]:
            queue.add(item(client, came_s=n))
    for _ in range(min(served, flood * others - 1)):
        taken(queue, 1e6)
    queue.add(item("one", came_s=1e6))
    order = [taken(queue, 1e6)[0].client for _ in range(len(queue))]
    assert order.index("one") <= others


def test_who_always_has_one_waiting_leaves_a_flood_its_turns() -> None:
    """Its next comes while its last runs, before anybody else is next."""
    queue = policy()
    for n in range(40):
        queue.add(item("flood", came_s=n))
    order = []
    for n in range(30):
        if not queue.count("quick"):
            queue.add(item("quick", came_s=100 + n))
        order.append(taken(queue, 200)[0].client)
    assert Counter(order)["flood"] == pytest.approx(15, abs=1)


def test_nobody_saves_up_turns() -> None:
    queue = policy()
    for n in range(100):
        queue.add(item("flood", came_s=n))
    for _ in range(50):
        taken(queue)
    for n in range(50):
        queue.add(item("late", came_s=100 + n))
    order = [taken(queue)[0].client for _ in range(20)]
    assert Counter(order) == {"late": 10, "flood": 10}


def test_bulk_work_has_a_share_and_what_is_left() -> None:
    queue = policy()
    for n in range(200):
        queue.add(item("shop", came_s=n))
        queue.add(item("night", priority=Priority.LOW, came_s=n))
    order = [taken(queue, 1e6)[0].client for _ in range(100)]
    assert order.index("night") >= 8, "it has just come, and waits for its share"
    assert Counter(order)["night"] == pytest.approx(100 * BULK_SHARE, abs=1)
    while queue.count("shop"):
        taken(queue, 1e6)
    left = queue.count("night")
    assert [taken(queue, 1e6)[0].client for _ in range(left)] == ["night"] * left


def test_bulk_work_takes_turns_too_and_makes_no_batch_with_other_work() -> None:
    queue = policy(max_batch=4)
    for n in range(8):
        for client in ("a", "b"):
            queue.add(item(client, priority=Priority.LOW, came_s=n))
    queue.add(item("shop"))
    batches = [[request.client for request in taken(queue)] for _ in range(3)]
    assert batches == [["shop"], ["a", "b", "a", "b"], ["a", "b", "a", "b"]]


def test_the_clients_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CLIENTS", 8)
    queue = policy()
    queue.add(item("flood"))
    for n in range(100):
        queue.add(item("flood", came_s=n))
        queue.add(item(f"one of many {n}", came_s=n))
        taken(queue, 1e6)
        taken(queue, 1e6)
    assert len(queue._turns[False]) <= 10
    while len(queue):
        taken(queue, 1e6)
    assert not len(queue._turns[False]) and queue.ahead_px(None, ()) == 0


@given(
    bound=st.integers(1, 200),
    steps=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=600),
)
def test_clients_who_take_all_they_may_leave_room(bound: int, steps: list[str]) -> None:
    """Eight that flood at once leave some of 64 for a ninth, and one alone gets seven eighths."""
    own: Counter[str] = Counter()
    for client in steps:
        if leaves_room(own[client], 1, own.total(), bound):
            own[client] += 1
    assert own.total() <= bound
    flooding = len(set(steps))
    if bound >= 8 * flooding + 1:
        assert own.total() < bound and leaves_room(0, 1, own.total(), bound)
    if flooding == 1 and len(steps) >= bound:
        assert own.total() >= bound * 7 // 8


@pytest.mark.parametrize(("n_bytes", "memory_bytes"), [(0, 0), (100, 0), (0, 10_000)])
async def test_a_flood_does_not_shut_out_another_client(n_bytes: int, memory_bytes: int) -> None:
    """Whichever bound it meets: requests, bytes or memory."""
    recorder = Recorder()
    held = Admission(
        max_requests=64,
        max_bytes=6400,
        max_pixels=100,
        max_memory_bytes=640_000,
        max_decode_bytes=1 << 30,
        observer=recorder,
    )
    queue, image = new_queue(max_queue=1000), Header("PNG", 1, 1, decode_bytes=memory_bytes)

    def fill(client: str) -> int:
        for n in range(100):
            try:
                held.admit(queue, image, n_bytes, client=client)
            except Overloaded:
                return n
        raise AssertionError("nothing bounds it")

    assert fill("flood") == 56
    assert fill("another") > 1, "room for more than one"
    assert fill("a third") >= 1
    assert recorder.reasons == ["overloaded"] * 3


def test_a_single_image_is_predicted_and_answered_before_a_flood() -> None:
    """The flood waits for all of its own, and is refused what would come too late."""

    async def scenario() -> None:
        machine = Machine(lambda batch: RUN_S)
        recorder = Recorder()
        async with started(
            machine, max_batch=1, max_queue=64, max_wait_s=40.5 * RUN_S, observer=recorder
        ) as queue:
            loop = asyncio.get_running_loop()

            async def ask(client: str) -> float:
                request = queue.reserve(6, loop.time() + 60, client=client)
                queue.put(request, image_of(1))
                return (await queue.result(request)).queue_s

            await ask("flood")
            flood, refused = [], 0
            for _ in range(100):
                flood.append(loop.create_task(ask("flood")))
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            refused = sum(task.done() for task in flood)
            assert refused == 59, "one runs, and forty come in time"
            assert set(recorder.reasons) == {"too_late"}
            new = queue.request(None, Priority.NORMAL, "single")
            assert queue._wait_s(new) == pytest.approx(2 * RUN_S, rel=1e-3)
            single = await ask("single")
            assert single <= 2 * RUN_S + 1e-9
            results = await asyncio.gather(*flood, return_exceptions=True)
            waits = [wait for wait in results if isinstance(wait, float)]
            assert len(waits) == 41 and max(waits) <= 42 * RUN_S

    virtual.run(scenario())


def test_a_full_queue_has_room_for_another_client() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        async with started(Machine(lambda batch: RUN_S), max_queue=64, observer=recorder) as queue:
            taken = 0
            for _ in range(100):
                try:
                    queue.reserve(6, client="flood")
                except Overloaded:
                    break
                taken += 1
            assert taken == 56 + 1 and recorder.reasons == ["queue_full"]
            queue.check(client="single")
            queue.reserve(6, client="single")

    virtual.run(scenario())


@settings(max_examples=30, deadline=None)
@given(
    others=st.integers(1, 30),
    own=st.integers(0, 4),
    clients=st.integers(1, 3),
    instances=st.integers(1, 2),
)
def test_the_predicted_wait_is_the_wait(
    others: int, own: int, clients: int, instances: int
) -> None:
    """Unless more comes; to within a run."""

    async def scenario() -> tuple[float, float]:
        async with started(Machine(lambda batch: RUN_S), instances=instances, max_batch=1) as queue:
            loop = asyncio.get_running_loop()

            async def ask(client: str) -> float:
                request = queue.reserve(6, client=client)
                queue.put(request, image_of(1))
                return (await queue.result(request)).queue_s

            await ask("x")
            tasks = [
                loop.create_task(ask(client))
                for client, n in [*((NAMES[k], others) for k in range(clients)), ("one", own)]
                for _ in range(n)
            ]
            await asyncio.sleep(0)
            predicted = queue._wait_s(queue.request(None, Priority.NORMAL, "one"))
            waited = await ask("one")
            await asyncio.gather(*tasks)
            return predicted, waited

    predicted, waited = virtual.run(scenario())
    assert waited == pytest.approx(predicted, abs=(1 + clients) * RUN_S)
