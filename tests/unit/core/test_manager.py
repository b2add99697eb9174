"""Models that come, change and go while requests are answered, with real ONNX files."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from pathlib import Path

import pytest

from service.core.engines.memory import trim_heap
from service.core.engines.onnx_runtime import open_onnx_runtime
from service.core.types import Network
from service.errors import ModelLoadError, ShuttingDown, UnknownModel, UnknownVersion
from tests.drawing import read_png
from tests.tiny_models import write_model
from tests.unit.core.fakes import settle
from tests.unit.core.repositories import (
    GREEN,
    IMAGE,
    OPTIONS,
    RED,
    device_threads,
    label,
    put,
    reason,
    states,
    under_load,
    until_all,
    write_broken,
)
from tests.unit.core.segmenters import FakeNetwork, on_device, red, send, serving
from tests.waiting import soon

# New versions, under load


async def test_a_new_version_takes_over_without_one_failed_request(tmp_path: Path) -> None:
    write_model(tmp_path, version=1, bias=RED)
    async with serving(tmp_path) as segmenter, under_load(segmenter) as labels:
        await until_all(labels, 0)
        write_model(tmp_path, version=2, bias=GREEN)
        await segmenter.load("tiny")
        await until_all(labels, 1)
        assert set(labels) <= {0, 1}
        assert await label(segmenter, version="1") == 0
        assert states(segmenter) == {"tiny/1": "ready", "tiny/2": "ready"}


async def test_a_file_is_replaced_again_and_again_without_one_failed_request(
    tmp_path: Path,
) -> None:
    models = tmp_path / "models"
    write_model(models, version=1, bias=RED)
    files = [write_model(tmp_path / str(n), bias=b) for n, b in enumerate((RED, GREEN))]
    async with serving(models) as segmenter, under_load(segmenter) as labels:
        await until_all(labels, 0)
        before = device_threads()
        for n in range(1, 7):
            put(models, files[n % 2], 1)
            await segmenter.load("tiny")
            await until_all(labels, n % 2)
        # Those of the six replaced files end by themselves. A file's threads begin one by one, as
        # they are needed, so the last may have two more than the first had by then.
        await soon(lambda: device_threads() <= before + 2)
        assert states(segmenter) == {"tiny/1": "ready"}


async def test_the_version_before_answers_what_it_has_and_is_closed(tmp_path: Path) -> None:
    async with on_device(tmp_path) as (segmenter, device):
        device.hold()
        waiting = [send(segmenter, red(v)) for v in (40, 41, 42)]
        await device.entered()
        new = FakeNetwork()
        segmenter._manager._loader._open = lambda path: new
        write_model(tmp_path, version=1, bias=GREEN)
        await segmenter.load("tiny")
        assert (await segmenter.segment(red(50), OPTIONS)).version == "1"
        assert new.device.values == [[50]]  # the new one answers while the old one is held
        old = list(segmenter._manager._draining)
        assert [model.queue.alive for model in old] == [True]
        device.release()
        replies = await asyncio.gather(*waiting)
        assert [int(read_png(reply.body)[0, 0]) for reply in replies] == [40, 41, 42]
        await soon(lambda: not segmenter._manager._draining)
        assert [model.queue.alive for model in old] == [False]


async def test_the_memory_of_the_version_before_is_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks: list[weakref.ref[Network]] = []
    left: list[int] = []

    def returned() -> None:
        left.append(sum(network() is not None for network in networks))
        trim_heap()

    monkeypatch.setattr("service.core.models.manager.trim_heap", returned)

    def opened(path: Path) -> Network:
        network = open_onnx_runtime(path, provider="cpu", threads=1)
        networks.append(weakref.ref(network))
        return network

    write_model(tmp_path, bias=RED)
    async with serving(tmp_path, open_network=opened) as segmenter:
        assert await label(segmenter) == 0
        gc.collect()
        gc.disable()  # by itself, not when the collector happens to come by
        try:
            write_model(tmp_path, bias=GREEN)
            await segmenter.load("tiny")
            assert await label(segmenter) == 1
            await soon(lambda: left == [1])
            assert networks[1]() is not None
            await segmenter.unload("tiny")
            assert left == [1, 0]  # and given back only when it is free
        finally:
            gc.enable()


async def test_what_has_not_changed_is_not_loaded_again(tmp_path: Path) -> None:
    write_model(tmp_path, version=1)
    loads: list[str] = []

    def opened(path: Path) -> Network:
        loads.append(path.parent.name)
        return open_onnx_runtime(path, provider="cpu", threads=1)

    async with serving(tmp_path, open_network=opened) as segmenter:
        await segmenter.load("tiny")
        write_model(tmp_path, version=2)
        await asyncio.gather(segmenter.load("tiny"), segmenter.load("tiny"))
        assert loads == ["1", "2"]
        (tmp_path / "tiny" / "model.toml").write_text("max_batch = 3")
        await segmenter.load("tiny")
        assert loads == ["1", "2", "2", "1"]  # the batch is part of what was made


# Broken versions


async def test_a_broken_new_version_takes_nothing_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_model(tmp_path, version=1, bias=RED)
    async with serving(tmp_path) as segmenter, under_load(segmenter) as labels:
        write_broken(tmp_path, 2)
        with pytest.raises(ModelLoadError, match="tiny/2/model.onnx cannot be loaded as an ONNX"):
            await segmenter.load("tiny")
        await until_all(labels, 0)
        assert segmenter.ready()
        assert states(segmenter) == {"tiny/1": "ready", "tiny/2": "failed"}
        assert reason(segmenter, "2").startswith("tiny/2/model.onnx cannot be loaded")
        assert "model tiny version 2 failed to load" in caplog.text
        with pytest.raises(UnknownVersion):
            await label(segmenter, version="2")

        write_model(tmp_path, version=2, bias=GREEN)  # and mended
        await segmenter.load("tiny")
        await until_all(labels, 1)
        assert reason(segmenter, "2") == ""


async def test_a_broken_file_in_place_of_a_good_one_leaves_the_good_one(tmp_path: Path) -> None:
    write_model(tmp_path, bias=RED)
    async with serving(tmp_path) as segmenter:
        write_broken(tmp_path, 1)
        with pytest.raises(ModelLoadError):
            await segmenter.load("tiny")
        assert await label(segmenter) == 0
        assert segmenter.ready()
        assert states(segmenter) == {"tiny/1": "ready"}
        assert "cannot be loaded as an ONNX model" in reason(segmenter, "1")


async def test_at_the_start_a_broken_version_gives_way_to_an_older_one(tmp_path: Path) -> None:
    write_model(tmp_path, version=1, bias=RED)
    write_broken(tmp_path, 2)
    (tmp_path / "tiny" / "3").mkdir()
    async with serving(tmp_path) as segmenter:
        assert segmenter.ready()
        assert await label(segmenter) == 0
        assert states(segmenter) == {"tiny/1": "ready", "tiny/2": "failed", "tiny/3": "failed"}
        assert reason(segmenter, "3") == (
            "'tiny/3/model.onnx' is missing: put the model there or remove the version folder"
        )


async def test_a_new_model_that_is_broken_leaves_the_server_ready(tmp_path: Path) -> None:
    write_model(tmp_path)
    async with serving(tmp_path) as segmenter:
        write_broken(tmp_path, 1, "other")
        with pytest.raises(ModelLoadError):
            await segmenter.load("other")
        assert segmenter.ready()
        assert states(segmenter) == {"other/1": "failed", "tiny/1": "ready"}
        assert [model.name for model in segmenter.models()] == ["tiny"]
        await segmenter.unload("other")
        assert states(segmenter)["other/1"] == "unloaded"


async def test_a_fault_of_the_runtime_is_a_failed_version(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def opened(path: Path) -> Network:
        if path.parent.name == "2":
            raise MemoryError
        return open_onnx_runtime(path, provider="cpu", threads=1)

    write_model(tmp_path, version=1)
    write_model(tmp_path, version=2)
    async with serving(tmp_path, open_network=opened) as segmenter:
        assert states(segmenter) == {"tiny/1": "ready", "tiny/2": "failed"}
        assert reason(segmenter, "2").endswith("cannot be loaded: MemoryError; the log has more")
    assert "Traceback" in caplog.text


# Unloading


async def test_unloading_waits_for_the_requests_in_flight(tmp_path: Path) -> None:
    async with on_device(tmp_path) as (segmenter, device):
        write_model(tmp_path, "other")
        device.hold()
        waiting = [send(segmenter, red(v)) for v in (40, 41)]
        await device.entered()
        unloading = asyncio.create_task(segmenter.unload("tiny"))
        await soon(lambda: states(segmenter)["tiny/1"] == "draining")
        with pytest.raises(UnknownModel, match="no model is loaded"):
            await segmenter.segment(IMAGE, OPTIONS)
        assert not unloading.done()
        device.release()
        replies = await asyncio.gather(*waiting)
        assert [int(read_png(reply.body)[0, 0]) for reply in replies] == [40, 41]
        await asyncio.wait_for(unloading, 10)
        assert states(segmenter) == {"tiny/1": "unloaded"}
        await segmenter.load("tiny")
        assert (await segmenter.segment(red(60), OPTIONS)).model == "tiny"


async def test_unloading_waits_for_what_was_replaced_and_still_answers(tmp_path: Path) -> None:
    async with on_device(tmp_path) as (segmenter, device):
        device.hold()
        waiting = send(segmenter, red(40))
        await device.entered()
        write_model(tmp_path, bias=(0, 0, 1))
        await segmenter.load("tiny")
        unloading = asyncio.create_task(segmenter.unload("tiny"))
        done, _ = await asyncio.wait({unloading}, timeout=0.5)
        assert not done
        device.release()
        assert int(read_png((await waiting).body)[0, 0]) == 40
        await asyncio.wait_for(unloading, 10)


async def test_an_impatient_caller_stops_neither_load_nor_unload(tmp_path: Path) -> None:
    async with on_device(tmp_path) as (segmenter, device):
        device.hold()
        waiting = send(segmenter, red(40))
        await device.entered()
        for change in (segmenter.unload("tiny"), segmenter.load("tiny")):
            asked = asyncio.create_task(change)
            await settle()
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
        device.release()
        await waiting
        await soon(lambda: states(segmenter) == {"tiny/1": "ready"})


@pytest.mark.parametrize("name", ["other", "", "..", "../tiny", "tiny/1", "/etc", "tiny\0"])
async def test_only_names_in_the_repository_are_taken(tmp_path: Path, name: str) -> None:
    write_model(tmp_path / "outside")
    write_model(tmp_path / "repository" / "models")
    async with serving(tmp_path / "repository" / "models") as segmenter:
        with pytest.raises(UnknownModel, match="there is no model"):
            await segmenter.load(name)
        with pytest.raises(UnknownModel, match="to unload: loaded are tiny"):
            await segmenter.unload(name)
        assert await label(segmenter) in {0, 1, 2}


async def test_a_server_that_is_leaving_changes_no_models(tmp_path: Path) -> None:
    write_model(tmp_path)
    async with serving(tmp_path) as segmenter:
        await segmenter.drain(1)
        for change in (segmenter.load, segmenter.unload):
            with pytest.raises(ShuttingDown):
                await change("tiny")


@pytest.fixture(autouse=True)
def _all_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
