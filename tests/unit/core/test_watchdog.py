"""Runs that hang: when they are ended, what is given up, and when the process should leave."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from service.core.batching.policy import Batch, InferenceRequest
from service.core.models import manager, watchdog
from service.core.models.registry import LoadedModel
from service.core.models.watchdog import AGAIN_S, FACTOR, TENSORRT_FACTOR, TICK_S, Watchdog
from service.core.types import ModelState
from service.errors import ModelNotReady, UnknownModel
from tests.tiny_models import write_model
from tests.unit.core.fakes import Recorder
from tests.unit.core.queues import image_of, new_queue
from tests.unit.core.segmenters import FakeNetwork, on_device, red, send
from tests.waiting import soon

FLOOR_S = 10.0


class Watched:
    """A model in virtual time whose runs end when a test says so."""

    def __init__(self, provider: str = "cpu") -> None:
        self.now = 0.0
        self.recorder = Recorder()
        self.dog = Watchdog(FLOOR_S, observer=self.recorder, clock=lambda: self.now)
        self.provider = provider
        self.model = self.new_model()
        self.ended: list[Batch] = []

    def new_model(self) -> LoadedModel:
        queue = new_queue(observer=self.recorder, clock=lambda: self.now)
        network = FakeNetwork()
        network.provider = self.provider
        return LoadedModel("m", "1", network, queue)

    def put(self) -> InferenceRequest:
        request = self.model.queue.reserve(20)
        self.model.queue.put(request, image_of(1))
        return request

    def begin(self) -> Batch:
        """Has an instance take what waits."""
        batch = self.model.queue.next_batch()
        assert batch is not None
        batch.terminate = lambda: self.ended.append(batch)
        return batch

    def wait(self, seconds: float) -> list[LoadedModel]:
        """Looks every tick, and returns what was lost."""
        lost: list[LoadedModel] = []
        for _ in range(round(seconds / TICK_S)):
            self.now += TICK_S
            lost += self.dog.look([self.model])
        return lost


async def test_a_run_that_takes_too_long_is_ended_and_answered_once() -> None:
    watched = Watched()
    request = watched.put()
    batch = watched.begin()
    assert watched.wait(FLOOR_S) == []
    assert not watched.ended and watched.model.queue.alive
    assert watched.wait(2 * TICK_S) == []
    assert watched.ended == [batch]
    assert watched.recorder.stuck_runs == [("m", "ended")]
    assert not watched.model.queue.alive, "until it has ended"
    with pytest.raises(ModelNotReady, match="took far longer over this image than it may"):
        await request.future
    watched.model.queue.retry_singly(batch, RuntimeError("ended"))
    watched.wait(TICK_S)
    assert watched.model.queue.alive
    watched.put()
    assert watched.begin() is not batch


async def test_what_the_latency_model_predicts_gives_a_run_more_time() -> None:
    watched = Watched()
    watched.model.queue.seed(20, 2.0)
    watched.put()
    batch = watched.begin()
    assert batch.expected_s == pytest.approx(2.0)
    watched.wait(2 * FACTOR)
    assert not watched.ended
    watched.wait(2 * TICK_S)
    assert watched.ended == [batch]


async def test_tensorrt_may_build_an_engine() -> None:
    watched = Watched("tensorrt")
    watched.put()
    watched.begin()
    watched.wait(FLOOR_S * TENSORRT_FACTOR)
    assert not watched.ended
    watched.wait(2 * TICK_S)
    assert watched.ended


async def test_a_process_that_was_stopped_blames_no_run() -> None:
    watched = Watched()
    watched.put()
    watched.begin()
    for _ in range(5):
        watched.now += 1000.0
        assert watched.dog.look([watched.model]) == []
    assert not watched.ended


async def test_a_run_that_does_not_end_costs_its_model() -> None:
    watched = Watched()
    watched.put()
    watched.begin()
    waiting = watched.put()
    assert watched.wait(2 * FLOOR_S + TICK_S) == [watched.model], "once"
    assert watched.wait(60) == []
    assert watched.recorder.stuck_runs == [("m", "ended"), ("m", "lost")]
    assert watched.model.state is ModelState.FAILED
    with pytest.raises(ModelNotReady, match="send the request to another"):
        await waiting.future
    with pytest.raises(ModelNotReady, match="send the request to another"):
        watched.put()
    assert not watched.dog.hopeless.is_set()


@pytest.mark.parametrize(("apart_s", "hopeless"), [(AGAIN_S / 2, True), (AGAIN_S + 1, False)])
async def test_two_lost_within_a_minute_are_hopeless(apart_s: float, hopeless: bool) -> None:
    watched = Watched()
    watched.model.queue.die(RuntimeError("first"))
    assert watched.wait(TICK_S) == [watched.model]
    watched.model = watched.new_model()
    watched.wait(apart_s - TICK_S)
    watched.model.queue.die(RuntimeError("second"))
    assert watched.wait(TICK_S) == [watched.model]
    assert watched.dog.hopeless.is_set() is hopeless


async def test_a_thread_that_has_ended_costs_its_model() -> None:
    watched = Watched()
    waiting = watched.put()
    over = threading.Event()
    threads = [threading.Thread(target=over.wait) for _ in range(2)]
    watched.model.threads = threads
    threads[0].start()
    threads[1].start()
    try:
        assert watched.wait(5) == []
        watched.model.threads = [threads[0], threading.Thread()]
        assert watched.wait(TICK_S) == [watched.model]
    finally:
        over.set()
    with pytest.raises(Exception, match="the model failed"):
        await waiting.future


# With the manager, which replaces what is lost. The device listens to nobody.


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (manager, watchdog):
        monkeypatch.setattr(module, "TICK_S", 0.02)
    monkeypatch.setattr(manager, "JOIN_S", 0.05)


@pytest.mark.usefixtures("hasty")
async def test_a_lost_model_is_loaded_anew(tmp_path: Path) -> None:
    async with on_device(tmp_path, stuck_after_s=0.2) as (segmenter, device):
        new = FakeNetwork()
        segmenter._manager._loader._open = lambda path: new
        device.hold()
        hanging, waiting = send(segmenter, red(40)), send(segmenter, red(41))
        for request in (hanging, waiting):
            with pytest.raises(ModelNotReady):
                await request
        await soon(segmenter.ready)
        assert (await send(segmenter, red(50))).version == "1"
        assert new.device.values == [[50]]
        assert not segmenter.hopeless.is_set()


@pytest.mark.usefixtures("hasty")
async def test_a_model_that_cannot_be_loaded_anew_stays_unready(tmp_path: Path) -> None:
    def fails(path: Path) -> FakeNetwork:
        raise MemoryError

    async with on_device(tmp_path) as (segmenter, _):
        segmenter._manager._loader._open = fails
        (model,) = segmenter._manager.registry.models()
        model.queue.die(RuntimeError("a fault of its own"))
        await soon(lambda: "MemoryError" in segmenter.index()[0].reason)
        assert not segmenter.ready()


@pytest.mark.usefixtures("hasty")
async def test_a_model_that_hangs_is_unloaded_and_a_second_caller_waits_for_it(
    tmp_path: Path,
) -> None:
    async with on_device(tmp_path, stuck_after_s=0.5) as (segmenter, device):
        device.hold()
        hanging = send(segmenter, red(40))
        await device.entered()
        unloading = [asyncio.create_task(segmenter.unload("tiny")) for _ in range(2)]
        with pytest.raises(ModelNotReady):
            await hanging
        await asyncio.wait_for(asyncio.gather(*unloading), 60)
        with pytest.raises(UnknownModel):
            await segmenter.unload("tiny")


@pytest.mark.usefixtures("hasty")
async def test_an_unload_that_takes_too_long_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "UNLOAD_S", 0.1)
    async with on_device(tmp_path) as (segmenter, device):
        device.hold()
        hanging = send(segmenter, red(40))
        await device.entered()
        with pytest.raises(ModelNotReady, match="still being unloaded"):
            await segmenter.unload("tiny")
        device.release()
        await hanging


@pytest.mark.usefixtures("hasty")
async def test_the_server_is_ready_while_one_of_its_models_is(tmp_path: Path) -> None:
    write_model(tmp_path, "other")
    async with on_device(tmp_path) as (segmenter, _):

        def fails(path: Path) -> FakeNetwork:
            raise MemoryError

        segmenter._manager._loader._open = fails
        for name, ready in (("tiny", True), ("other", False)):
            segmenter._manager.registry.find(name, None).queue.die(RuntimeError("a fault"))
            assert segmenter.ready() is ready
