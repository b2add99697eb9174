"""Images of several sizes in one batch, in virtual time: what must hold whatever comes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.batching.latency_model import RUN_OVERHEAD_PX
from service.core.types import Priority
from service.errors import InferenceFailed
from tests.unit.core import virtual
from tests.unit.core.fakes import POISON, UInt8Array
from tests.unit.core.test_batcher_load import (
    ARRIVALS,
    CAP_S,
    RUN_S,
    Arrival,
    World,
    check_answer,
    counters,
    picture,
    started,
)
from tests.unit.core.virtual import Machine

LANDSCAPE, PORTRAIT, LOWER = (3, 4), (4, 3), (2, 4)
"""(height, width). The first two leave a quarter of [N,4,4] empty, the first and third of [2,3,4]
a sixth."""


def waste(machine: Machine) -> list[float]:
    """Of each batch, the share that is padding."""
    return [
        1 - sum(height * width for height, width in sizes) / math.prod(batch.shape[:3])
        for (_, _, batch), sizes in zip(machine.runs, machine.sizes, strict=True)
    ]


@settings(max_examples=100, deadline=None)
@given(
    arrivals=ARRIVALS,
    instances=st.integers(1, 3),
    alone=st.booleans(),
    max_batch=st.integers(1, 6),
    max_batch_pixels=st.sampled_from([1, 13, 4000, 1 << 20]),
    max_padding=st.sampled_from([0.0, 0.1, 0.34, 0.9]),
)
def test_whatever_comes(
    arrivals: list[Arrival],
    instances: int,
    alone: bool,
    max_batch: int,
    max_batch_pixels: int,
    max_padding: float,
) -> None:
    """Everybody is answered once, in time, with the part of the batch that is theirs; the bounds
    count padding; nothing is left."""
    world = World()

    async def scenario() -> None:
        async with started(
            world.machine,
            instances=instances,
            alone=alone,
            ragged=[world.machine.ragged] * instances,
            max_batch=max_batch,
            max_batch_pixels=max_batch_pixels,
            max_padding=max_padding,
        ) as batcher:
            await world.play(batcher, arrivals)
            assert counters(batcher) == (0,) * len(counters(batcher))
            assert batcher.alive

    virtual.run(scenario())
    for told in world.told:
        check_answer(told)
    for (_, _, batch), share in zip(world.machine.runs, waste(world.machine), strict=True):
        n, height, width = batch.shape[:3]
        assert n <= max_batch
        assert n == 1 or n * height * width <= max_batch_pixels
        assert share <= max_padding


@settings(max_examples=60, deadline=None)
@given(arrivals=ARRIVALS, max_batch=st.integers(1, 6), max_padding=st.sampled_from([0.2, 0.9]))
def test_after_the_age_cap_nobody_overtakes(
    arrivals: list[Arrival], max_batch: int, max_padding: float
) -> None:
    """As without mixed batches: so nobody starves."""
    patient = [
        Arrival(a.after_s, a.shape, POISON + 1 + n, a.priority, 0.0, None, None)
        for n, a in enumerate(arrivals)
    ]
    world = World()

    async def scenario() -> None:
        async with started(
            world.machine,
            ragged=[world.machine.ragged],
            max_batch=max_batch,
            max_padding=max_padding,
        ) as batcher:
            await world.play(batcher, patient)

    virtual.run(scenario())
    began = {}
    for at, _, batch in world.machine.runs:
        for image in batch:
            began[int(image[0, 0, 0])] = at
    assert began.keys() == {told.arrival.value for told in world.told}
    for one in world.told:
        for other in world.told:
            if other.queued_s <= one.queued_s:
                continue  # only the younger can overtake
            at = began[other.arrival.value]
            if at < began[one.arrival.value]:
                steps = max(0, one.arrival.priority - other.arrival.priority)
                assert (
                    other.queued_s - one.queued_s < steps * CAP_S + 1e-9
                    or at - one.queued_s < CAP_S
                )


def batches(
    shapes: Sequence[tuple[int, int]],
    *,
    ragged: bool = True,
    max_batch: int = 4,
    max_padding: float = 0.25,
    max_batch_pixels: int = 1 << 20,
) -> list[list[tuple[int, int]]]:
    """Of images that come one after the other while another keeps the device busy."""

    async def scenario() -> list[list[tuple[int, int]]]:
        machine = Machine(lambda batch: RUN_S)
        async with started(
            machine,
            ragged=[machine.ragged] if ragged else [],
            max_batch=max_batch,
            max_padding=max_padding,
            max_batch_pixels=max_batch_pixels,
        ) as batcher:
            loop = asyncio.get_running_loop()
            tasks = [loop.create_task(batcher.submit(picture(1, (1, 1))))]
            await asyncio.sleep(RUN_S / 2)
            for n, shape in enumerate(shapes):
                tasks.append(loop.create_task(batcher.submit(picture(20 + n, shape))))
                await asyncio.sleep(1e-4)
            answers = await asyncio.gather(*tasks)
            for n, (answer, shape) in enumerate(zip(answers[1:], shapes, strict=True)):
                np.testing.assert_array_equal(answer.label_map, np.full(shape, 20 + n))
        return machine.sizes[1:]

    return virtual.run(scenario())


def test_equal_sizes_first_then_what_fits_then_nothing_that_pads_too_much() -> None:
    shapes = [LANDSCAPE, LOWER, LANDSCAPE, PORTRAIT]
    assert batches(shapes, max_padding=0.0) == [[LANDSCAPE] * 2, [LOWER], [PORTRAIT]]
    assert batches(shapes, max_padding=0.2) == [[LANDSCAPE, LANDSCAPE, LOWER], [PORTRAIT]]
    # 12 + 12 + 8 of 36, and with the portrait 44 of 64.
    assert batches(shapes, max_padding=0.3) == [[LANDSCAPE, LANDSCAPE, LOWER], [PORTRAIT]]
    assert batches(shapes, max_padding=0.32) == [[LANDSCAPE, LANDSCAPE, LOWER, PORTRAIT]]


def test_padding_counts_as_pixels_of_the_batch() -> None:
    shapes = [LANDSCAPE, PORTRAIT]
    assert batches(shapes, max_batch_pixels=32) == [shapes]
    assert batches(shapes, max_batch_pixels=31) == [[LANDSCAPE], [PORTRAIT]]


def test_one_at_a_time_and_networks_without_sizes_are_as_ever() -> None:
    shapes = [LANDSCAPE, PORTRAIT, LANDSCAPE]
    assert batches(shapes, max_batch=1) == [[LANDSCAPE], [PORTRAIT], [LANDSCAPE]]
    assert batches(shapes, ragged=False) == [[LANDSCAPE] * 2, [PORTRAIT]]


def test_a_deadline_counts_what_padding_costs() -> None:
    """By the pace of padded pixels the two together would be late, and so they run apart."""

    row, column = (16, 512), (512, 16)

    def seconds(batch: UInt8Array) -> float:
        pixels = batch.shape[1] * batch.shape[2] + RUN_OVERHEAD_PX
        return float(RUN_S * len(batch) * pixels / (16 * 512 + RUN_OVERHEAD_PX))

    async def scenario(deadline_s: float) -> list[list[tuple[int, int]]]:
        loop = asyncio.get_running_loop()
        machine = Machine(seconds)
        async with started(machine, ragged=[machine.ragged], max_padding=0.97) as batcher:
            await batcher.submit(picture(1, row))  # the pace is known from here
            tasks = [loop.create_task(batcher.submit(picture(1, row)))]
            await asyncio.sleep(0)
            for shape in (row, column):
                task = batcher.submit(picture(2, shape), loop.time() + deadline_s)
                tasks.append(loop.create_task(task))
            await asyncio.gather(*tasks, return_exceptions=True)
        return machine.sizes[2:]

    # One run first; then the two, padded, take 22.7 more, not 2 as their own pixels would.
    assert virtual.run(scenario(24 * RUN_S)) == [[row, column]]
    assert virtual.run(scenario(23 * RUN_S)) == [[row], [column]]


def test_a_failing_image_costs_its_mates_of_other_sizes_nothing() -> None:
    async def scenario() -> Sequence[object]:
        machine = Machine(lambda batch: RUN_S)
        async with started(machine, ragged=[machine.ragged], max_padding=0.9) as batcher:
            loop = asyncio.get_running_loop()
            tasks = [loop.create_task(batcher.submit(picture(1)))]
            await asyncio.sleep(RUN_S / 2)
            tasks += [
                loop.create_task(batcher.submit(picture(value, shape)))
                for value, shape in ((5, LANDSCAPE), (POISON, PORTRAIT), (6, LOWER))
            ]
            answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [len(sizes) for sizes in machine.sizes] == [1, 3, 1, 1, 1]
        return answers[1:]

    first, failed, last = virtual.run(scenario())
    assert first.label_map.shape == LANDSCAPE  # type: ignore[attr-defined]
    assert isinstance(failed, InferenceFailed)
    assert (last.label_map == np.full(LOWER, 6)).all()  # type: ignore[attr-defined]


def test_images_whose_scores_are_wanted_are_not_mixed() -> None:
    def scored(batch: UInt8Array) -> tuple[UInt8Array, npt.NDArray[np.float32]]:
        return batch[..., 0], batch.transpose(0, 3, 1, 2).astype(np.float32)

    async def scenario() -> list[list[tuple[int, int]]]:
        machine = Machine(lambda batch: RUN_S)
        async with started(
            machine, scored=[scored], ragged=[machine.ragged], max_padding=0.9
        ) as batcher:
            loop = asyncio.get_running_loop()
            tasks = [loop.create_task(batcher.submit(picture(1)))]
            await asyncio.sleep(0)
            for shape in (LANDSCAPE, PORTRAIT):
                answer = batcher.submit(picture(2, shape), squeeze=lambda logits, _: logits)
                tasks.append(loop.create_task(answer))
            tasks.append(loop.create_task(batcher.submit(picture(2, LANDSCAPE))))
            tasks.append(loop.create_task(batcher.submit(picture(2, PORTRAIT))))
            answers = await asyncio.gather(*tasks)
            assert [a.scores.shape[1:] for a in answers if a.scores is not None] == [
                LANDSCAPE,
                PORTRAIT,
            ]
        return machine.sizes[1:]

    assert virtual.run(scenario()) == [[LANDSCAPE], [PORTRAIT], [LANDSCAPE, PORTRAIT]]


@pytest.mark.parametrize("priority", Priority)
def test_a_rare_size_does_not_starve(priority: Priority) -> None:
    """A flood of sizes that fit together, and one image that fits none of them."""

    async def scenario() -> float:
        machine = Machine(lambda batch: RUN_S)
        async with started(machine, ragged=[machine.ragged], max_padding=0.34) as batcher:
            loop = asyncio.get_running_loop()
            flood = [loop.create_task(batcher.submit(picture(1, LANDSCAPE))) for _ in range(8)]
            await asyncio.sleep(0)
            rare = loop.create_task(batcher.submit(picture(2, (40, 1)), priority=priority))
            for n in range(80):
                await asyncio.sleep(0.004)
                shape = (LANDSCAPE, LOWER)[n % 2]
                flood.append(loop.create_task(batcher.submit(picture(1, shape))))
            await asyncio.gather(rare, *flood)
            return rare.result().queue_s

    # Eight images were there before it, and one batch may overtake it. Low, it also comes after
    # those of the next 0.1 s: the last of 34, nine batches.
    batches = 10 if priority is Priority.LOW else 3
    assert virtual.run(scenario()) <= batches * RUN_S + 1e-9


async def test_a_network_that_answers_in_another_shape_fails_alone() -> None:
    """Not the batcher: those images are run one by one, and answered."""

    def ragged(batch: UInt8Array, sizes: Sequence[tuple[int, int]]) -> UInt8Array:
        return batch[:, :1, :, 0]

    async def scenario() -> list[tuple[int, ...]]:
        machine = Machine(lambda batch: RUN_S)
        async with started(machine, ragged=[ragged], max_padding=0.9) as batcher:
            loop = asyncio.get_running_loop()
            tasks = [loop.create_task(batcher.submit(picture(1)))]
            await asyncio.sleep(0)
            for shape in (LANDSCAPE, PORTRAIT):
                tasks.append(loop.create_task(batcher.submit(picture(2, shape))))
            return [answer.label_map.shape for answer in await asyncio.gather(*tasks)][1:]

    assert await asyncio.to_thread(virtual.run, scenario()) == [LANDSCAPE, PORTRAIT]
