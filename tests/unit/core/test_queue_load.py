"""The queue under any load, in virtual time: what must hold whatever comes."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.batching.policy import InferenceResult
from service.core.types import Priority
from service.errors import DeadlineExceeded, InferenceFailed, Overloaded, ShuttingDown
from tests.unit.core import virtual
from tests.unit.core.arrivals import (
    ARRIVALS,
    CAP_S,
    RUN_S,
    Arrival,
    Told,
    World,
    counters,
    image_of,
    reserved,
    started,
)
from tests.unit.core.fakes import POISON, Recorder
from tests.unit.core.queues import submit
from tests.unit.core.virtual import Machine


@settings(max_examples=60, deadline=None)
@given(
    arrivals=ARRIVALS,
    instances=st.integers(1, 3),
    full_device=st.booleans(),
    max_batch=st.integers(1, 5),
    max_batch_pixels=st.sampled_from([1, 13, 4000, 1 << 20]),
    max_queue=st.sampled_from([1, 5, 1000]),
    max_wait_s=st.sampled_from([0.05, 0.3, math.inf]),
)
def test_whatever_comes(
    arrivals: list[Arrival],
    instances: int,
    full_device: bool,
    max_batch: int,
    max_batch_pixels: int,
    max_queue: int,
    max_wait_s: float,
) -> None:
    """Everybody is answered once, rightly and in time; no budget is passed; nothing is left."""
    world = World()

    async def scenario() -> None:
        async with started(
            world.machine,
            instances=instances,
            full_device=full_device,
            max_batch=max_batch,
            max_batch_pixels=max_batch_pixels,
            max_queue=max_queue,
            max_wait_s=max_wait_s,
            observer=world.recorder,
        ) as queue:
            await world.play(queue, arrivals)
            assert counters(queue) == (0,) * len(counters(queue))
            assert len(queue.idle) == instances + full_device
            assert queue.alive

    virtual.run(scenario())
    for told in world.told:
        check_answer(told)
    assert world.machine.most_busy <= instances
    assert max(world.recorder.depths, default=0) <= max_queue + instances
    for _, _, batch in world.machine.runs:
        n, height, width = batch.shape[:3]
        assert n <= max_batch
        assert n == 1 or n * height * width <= max_batch_pixels
    runs = sum(len(batch) for _, _, batch in world.machine.runs)
    again = sum(
        len(batch)
        for _, _, batch in world.machine.runs
        if len(batch) > 1 and (batch[:, 0, 0, 0] == POISON).any()
    )
    assert runs <= len(arrivals) + again, "only the images of a failed batch are run twice"


def check_answer(told: Told) -> None:
    arrival, result = told.arrival, told.result
    assert told.answers == 1 or isinstance(result, asyncio.CancelledError) or told.answers == 0
    waited_s = told.answered_s - told.came_s
    match result:
        case InferenceResult():
            assert result.label_map.shape == arrival.shape
            assert (result.label_map == arrival.value).all()
            assert arrival.value != POISON
            if arrival.deadline_s is not None:
                assert waited_s <= arrival.deadline_s + 1e-6
        case DeadlineExceeded():
            assert arrival.deadline_s is not None
            assert waited_s >= arrival.deadline_s - 1e-6
            # Told in time: no later than the deadline, or than the decode that ran over it.
            assert waited_s <= max(arrival.deadline_s, arrival.decode_s) + 1e-3
        case Overloaded():
            assert waited_s == 0
            assert 1 <= result.retry_after_s <= 60
        case InferenceFailed():
            assert arrival.value == POISON
        case asyncio.CancelledError() | None:  # None: left before its task began
            assert arrival.leaves_s is not None
        case _:
            pytest.fail(f"{result!r}")


@settings(max_examples=50, deadline=None)
@given(arrivals=ARRIVALS, max_batch=st.integers(1, 5))
def test_the_order_of_the_queue(arrivals: list[Arrival], max_batch: int) -> None:
    """It keeps to arrival within shape and priority; and after the age cap nobody overtakes, but
    bulk work (tests/unit/core/test_fairness.py)."""
    # Values are names here, from one that does not fail.
    patient = [
        Arrival(a.after_s, a.shape, POISON + 1 + n, a.priority, 0.0, None, None)
        for n, a in enumerate(arrivals)
    ]
    world = World()

    async def scenario() -> None:
        async with started(world.machine, max_batch=max_batch) as queue:
            await world.play(queue, patient)

    virtual.run(scenario())
    began = {}
    for at, _, batch in world.machine.runs:
        for image in batch:
            began[int(image[0, 0, 0])] = at
    told = {t.arrival.value: t for t in world.told}
    assert began.keys() == told.keys()
    for one in told.values():
        for other in told.values():
            if other.queued_s <= one.queued_s:
                continue  # only the younger can overtake
            overtakes = began[other.arrival.value] < began[one.arrival.value]
            same = (other.arrival.shape, other.arrival.priority) == (
                one.arrival.shape,
                one.arrival.priority,
            )
            assert not (same and overtakes)
            if overtakes and one.arrival.priority is not Priority.LOW:
                steps = max(0, one.arrival.priority - other.arrival.priority)
                at = began[other.arrival.value]
                # Either it came within its head start, or it was the mate of a leader, which
                # is for those only that have not waited for the age cap.
                assert (
                    other.queued_s - one.queued_s < steps * CAP_S + 1e-9
                    or at - one.queued_s < CAP_S
                )


def test_a_rare_size_does_not_starve() -> None:
    """A flood of one shape in large batches, and one image of another."""

    async def scenario() -> float:
        machine = Machine(lambda batch: RUN_S)
        async with started(machine, max_batch=4) as queue:
            loop = asyncio.get_running_loop()
            flood = [loop.create_task(submit(queue, image_of(1))) for _ in range(40)]
            await asyncio.sleep(0)
            rare = loop.create_task(submit(queue, image_of(2, (3, 2))))
            for _ in range(60):
                await asyncio.sleep(0.004)
                flood.append(loop.create_task(submit(queue, image_of(1))))
            began = loop.time()
            await asyncio.gather(rare, *flood)
            return float(loop.time() - began) if not rare.done() else rare.result().queue_s

    # Ten batches were there before it; none of those that came later goes first.
    assert virtual.run(scenario()) <= 11 * RUN_S


@pytest.mark.parametrize("priority", [Priority.HIGH, Priority.LOW])
def test_priorities_count_for_a_while(priority: Priority) -> None:
    """High goes first and low last of images that came at once; a flood leaves low its answers."""

    async def scenario() -> list[int]:
        machine = Machine(lambda batch: RUN_S)
        async with started(machine, max_batch=1) as queue:
            loop = asyncio.get_running_loop()
            tasks = [loop.create_task(submit(queue, image_of(n))) for n in range(3)]
            await asyncio.sleep(0.001)
            tasks.append(loop.create_task(submit(queue, image_of(9), priority=priority)))
            for n in range(20, 30):
                await asyncio.sleep(RUN_S / 2)  # twice what the device can do
                tasks.append(loop.create_task(submit(queue, image_of(n))))
            await asyncio.gather(*tasks)
        return [int(batch[0, 0, 0, 0]) for _, _, batch in machine.runs]

    order = virtual.run(scenario())
    if priority is Priority.HIGH:
        assert order[:4] == [0, 9, 1, 2]
    else:
        assert order[:3] == [0, 1, 2]
        assert 8 <= order.index(9) <= 11, "it has a tenth of the device while others want it"


def test_a_lone_image_has_the_device_to_itself_and_a_crowd_the_instances() -> None:
    async def scenario() -> list[str]:
        machine = Machine(lambda batch: RUN_S)
        async with started(machine, instances=2, full_device=True, max_batch=1) as queue:
            await submit(queue, image_of(1))
            await asyncio.gather(*(submit(queue, image_of(n)) for n in range(4)))
            with reserved(queue):  # somebody is decoding: no longer alone
                await submit(queue, image_of(1))
            await submit(queue, image_of(1))
        assert machine.most_busy == 2
        return [name for _, name, _ in machine.runs]

    names = virtual.run(scenario())
    assert names[0] == "full"
    # The first of the crowd came to an idle device; a free instance takes the second at once.
    assert names[1] == "full"
    assert set(names[2:5]) <= {"0", "1"}
    assert names[5] in ("0", "1")
    assert names[6] == "full"


def test_what_cannot_be_in_time_is_refused_at_once() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        machine, recorder = Machine(lambda batch: RUN_S), Recorder()
        async with started(
            machine, max_batch=1, max_wait_s=4.5 * RUN_S, observer=recorder
        ) as queue:
            await submit(queue, image_of(1))  # the pace is known from here
            tasks = [loop.create_task(submit(queue, image_of(n))) for n in range(3)]
            await asyncio.sleep(0)
            new = queue.request(None, Priority.NORMAL, "")
            assert queue._wait_s(new) == pytest.approx(3 * RUN_S)
            with pytest.raises(Overloaded):
                queue.reserve(6, loop.time() + 5.2 * RUN_S)
            taken = queue.reserve(6, loop.time() + 5.5 * RUN_S)
            assert recorder.reasons == ["too_late"]
            with reserved(queue):
                assert queue._wait_s(new) == pytest.approx(5 * RUN_S)
                with pytest.raises(Overloaded):
                    queue.check()
                queue.check(None, Priority.HIGH)  # of all these only what runs is ahead of it
                with pytest.raises(Overloaded):
                    queue.reserve(6)
            queue.put(taken, image_of(7))
            assert (await queue.result(taken)).label_map[0, 0] == 7
            await asyncio.gather(*tasks)

    virtual.run(scenario())


def test_a_batch_is_not_made_too_large_for_a_deadline_in_it() -> None:
    async def scenario() -> list[int]:
        loop = asyncio.get_running_loop()
        machine = Machine(lambda batch: RUN_S * len(batch))
        async with started(machine, max_batch=8) as queue:
            await submit(queue, image_of(1))
            deadline = loop.time() + 5.5 * RUN_S
            tasks = [loop.create_task(submit(queue, image_of(1))) for _ in range(3)]
            await asyncio.sleep(0)
            tasks.append(loop.create_task(submit(queue, image_of(1), deadline)))
            tasks += [loop.create_task(submit(queue, image_of(1))) for _ in range(4)]
            await asyncio.gather(*tasks)
        return [len(batch) for _, _, batch in machine.runs]

    # The fourth would be late with more than one of those behind it.
    assert virtual.run(scenario()) == [1, 1, 4, 3]


def test_a_wrong_pace_is_unlearned_on_an_idle_device() -> None:
    """After a run of a minute a short deadline looks hopeless, until the next run."""

    async def scenario() -> None:
        seconds = iter([60.0, *[RUN_S] * 60])
        machine = Machine(lambda batch: next(seconds))
        async with started(machine, max_wait_s=0.2) as queue:
            loop = asyncio.get_running_loop()
            await submit(queue, image_of(1))
            for _ in range(50):
                await submit(queue, image_of(1), loop.time() + 1)
            tasks = [loop.create_task(submit(queue, image_of(n))) for n in range(2)]
            await asyncio.gather(*tasks)

    virtual.run(scenario())


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 1000),
    load=st.sampled_from([2.0, 3.0]),
    instances=st.integers(1, 2),
    limit_s=st.sampled_from([0.3, math.inf]),
)
def test_overload_loses_no_capacity_and_keeps_its_promise(
    seed: int, load: float, instances: int, limit_s: float
) -> None:
    """Poisson arrivals at twice and three times capacity, for a minute of virtual time."""
    minute = 20.0
    world = World(Machine(lambda batch: RUN_S))
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(RUN_S / (load * instances), int(minute * load * instances / RUN_S))
    arrivals = [Arrival(float(gap), (40, 50), 1, Priority.NORMAL, 0.002, 0.5, None) for gap in gaps]

    async def scenario() -> None:
        async with started(
            world.machine, instances=instances, max_batch=1, max_wait_s=limit_s
        ) as queue:
            await world.play(queue, arrivals)

    virtual.run(scenario())
    answered = [t for t in world.told if isinstance(t.result, InferenceResult)]
    refused = [t for t in world.told if isinstance(t.result, Overloaded)]
    assert len(answered) + len(refused) == len(arrivals), "none is late"
    span = world.told[-1].came_s
    assert len(answered) >= 0.97 * span * instances / RUN_S
    waits = sorted(t.answered_s - t.came_s for t in answered)
    assert waits[int(0.99 * len(waits))] <= min(limit_s + 2 * RUN_S, 0.75 * 0.5 + RUN_S) + 0.01


def test_a_storm_of_leavers_leaves_nothing() -> None:
    async def scenario() -> None:
        machine = Machine(lambda batch: RUN_S)
        async with started(machine, instances=2) as queue:
            loop = asyncio.get_running_loop()
            tasks = [
                loop.create_task(submit(queue, image_of(n % 7), loop.time() + 60))
                for n in range(500)
            ]
            await asyncio.sleep(0.001)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(1)
            assert counters(queue) == (0,) * len(counters(queue))
            assert len(machine.runs) == 2, "what was on the device, and no more"
            assert (await submit(queue, image_of(3))).label_map[0, 0] == 3

    virtual.run(scenario())


def test_closing_in_mid_run_answers_everybody() -> None:
    async def scenario() -> None:
        async with started(Machine(lambda batch: RUN_S), instances=2) as queue:
            loop = asyncio.get_running_loop()
            tasks = [loop.create_task(submit(queue, image_of(n))) for n in range(20)]
            late = queue.reserve(6)
            await asyncio.sleep(RUN_S / 2)
            queue.close()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, ShuttingDown) for result in results)
            queue.put(late, image_of(1))
            with pytest.raises(ShuttingDown):
                await queue.result(late)
            with pytest.raises(ShuttingDown):
                await submit(queue, image_of(2))
            assert not queue.alive
            await asyncio.sleep(1)  # the runs end, and nobody takes them
            assert counters(queue) == (0,) * len(counters(queue))

    virtual.run(scenario())


def test_room_is_given_back_once() -> None:
    async def scenario() -> None:
        async with started(Machine(lambda batch: RUN_S), max_queue=1) as queue:
            requests = [queue.reserve(10), queue.reserve(10)]
            with pytest.raises(Overloaded):
                queue.reserve(10)
            for request in (*requests, *requests):
                queue.release(request)
            assert counters(queue) == (0,) * len(counters(queue))

    virtual.run(scenario())
