"""Models that come, change and go while requests are answered, with real ONNX files.

A file's label is told by its bias: version 1 says 0 (red) everywhere, version 2 says 1 (green).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.config import SegmenterConfig
from service.core.engines.memory import trim_heap
from service.core.engines.onnx_runtime import Session
from service.core.segmenter import ModelStatus, Segmenter, SegmentOptions
from service.core.types import Network
from service.errors import (
    ModelLoadError,
    ShuttingDown,
    UnknownModel,
    UnknownVersion,
)
from tests import drawing
from tests.drawing import read_png
from tests.tiny_models import contract, write_model
from tests.unit.core.fakes import settle
from tests.unit.core.test_segmenter import FakeNetwork, on_device, red, send, serving

IMAGE = drawing.png(np.full((5, 7, 3), 100, np.uint8))
OPTIONS = SegmentOptions()
RED, GREEN, BLUE = ((300, 0, 0), (0, 300, 0), (0, 0, 300))


async def label(segmenter: Segmenter, model: str | None = None, version: str | None = None) -> int:
    """The class that the version answering gives every pixel."""
    reply = await segmenter.segment(IMAGE, replace(OPTIONS, model=model, version=version))
    (found,) = set(read_png(reply.body).ravel().tolist())
    return int(found)


def states(segmenter: Segmenter) -> dict[str, str]:
    return {f"{e.name}/{e.version}": str(e.state) for e in segmenter.index()}


def reason(segmenter: Segmenter, version: str, name: str = "tiny") -> str:
    return next(e.reason for e in segmenter.index() if (e.name, e.version) == (name, version))


def put(repository: Path, source: Path, version: int, name: str = "tiny") -> Path:
    """Moves a file into its place, as whoever publishes a model should."""
    path = repository / name / str(version) / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, path.with_name("incoming"))
    return path.with_name("incoming").replace(path)


def write_broken(repository: Path, version: int, name: str = "tiny") -> Path:
    path = repository / name / str(version) / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not a model")
    return path


@asynccontextmanager
async def under_load(segmenter: Segmenter, callers: int = 4) -> AsyncIterator[list[int]]:
    """Callers that send without a pause; the labels of their answers. Any failure is raised."""
    labels: list[int] = []
    over = asyncio.Event()

    async def call() -> None:
        while not over.is_set():
            labels.append(await label(segmenter))

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(call())
        yield labels
        over.set()


def device_threads() -> int:
    return sum(thread.name.startswith("infer-") for thread in threading.enumerate())


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise TimeoutError


async def until(labels: list[int], wanted: int) -> None:
    """Some more answers have come, and the last are all `wanted`."""
    labels.clear()
    await eventually(lambda: len(labels) >= 20 and set(labels[-10:]) == {wanted})


# New versions, under load


async def test_a_new_version_takes_over_without_one_failed_request(tmp_path: Path) -> None:
    write_model(tmp_path, version=1, bias=RED)
    async with serving(tmp_path) as segmenter, under_load(segmenter) as labels:
        await until(labels, 0)
        write_model(tmp_path, version=2, bias=GREEN)
        await segmenter.load("tiny")
        await until(labels, 1)
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
        await until(labels, 0)
        before = device_threads()
        for n in range(1, 7):
            put(models, files[n % 2], 1)
            await segmenter.load("tiny")
            await until(labels, n % 2)
        # Those of the six replaced files end by themselves. A file's threads begin one by one, as
        # they are needed, so the last may have two more than the first had by then.
        await eventually(lambda: device_threads() <= before + 2)
        assert states(segmenter) == {"tiny/1": "ready"}


async def test_the_version_before_answers_what_it_has_and_is_closed(tmp_path: Path) -> None:
    async with on_device(tmp_path) as (segmenter, device):
        device.hold()
        waiting = [send(segmenter, red(v)) for v in (40, 41, 42)]
        await device.entered()
        new = FakeNetwork()
        segmenter._fleet._loader._open = lambda path: new
        write_model(tmp_path, version=1, bias=GREEN)
        await segmenter.load("tiny")
        assert (await segmenter.segment(red(50), OPTIONS)).version == "1"
        assert new.device.values == [[50]]  # the new one answers while the old one is held
        old = list(segmenter._fleet._draining)
        assert [served.queue.alive for served in old] == [True]
        device.release()
        replies = await asyncio.gather(*waiting)
        assert [int(read_png(reply.body)[0, 0]) for reply in replies] == [40, 41, 42]
        await eventually(lambda: not segmenter._fleet._draining)
        assert [served.queue.alive for served in old] == [False]


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
        network = Session(path, provider="cpu", threads=1)
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
            await eventually(lambda: left == [1])
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
        return Session(path, provider="cpu", threads=1)

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
        await until(labels, 0)
        assert segmenter.ready()
        assert states(segmenter) == {"tiny/1": "ready", "tiny/2": "failed"}
        assert reason(segmenter, "2").startswith("tiny/2/model.onnx cannot be loaded")
        assert "model tiny version 2 failed to load" in caplog.text
        with pytest.raises(UnknownVersion):
            await label(segmenter, version="2")

        write_model(tmp_path, version=2, bias=GREEN)  # and mended
        await segmenter.load("tiny")
        await until(labels, 1)
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
        return Session(path, provider="cpu", threads=1)

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
        await eventually(lambda: states(segmenter)["tiny/1"] == "draining")
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
        await eventually(lambda: states(segmenter) == {"tiny/1": "ready"})


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


# Policy, default version, aliases


async def test_the_latest_that_load_are_served(tmp_path: Path) -> None:
    for version in (1, 2, 3):
        write_model(tmp_path, version=version)
    write_broken(tmp_path, 4)
    (tmp_path / "tiny" / "model.toml").write_text("versions = {latest = 2}")
    async with serving(tmp_path) as segmenter:
        expected = {"tiny/1": "unloaded", "tiny/2": "ready", "tiny/3": "ready", "tiny/4": "failed"}
        assert states(segmenter) == expected
        write_model(tmp_path, version=5)
        with suppress(ModelLoadError):
            await segmenter.load("tiny")
        assert [v.version for v in segmenter.models()[0].versions] == ["3", "5"]


async def test_versions_can_be_listed_and_a_default_named(tmp_path: Path) -> None:
    for version, bias in ((1, RED), (2, GREEN), (3, BLUE)):
        write_model(tmp_path, version=version, bias=bias)
    file = tmp_path / "tiny" / "model.toml"
    file.write_text("versions = [1, 2]\ndefault_version = 1")
    async with serving(tmp_path) as segmenter:
        assert await label(segmenter) == 0
        assert await label(segmenter, version="2") == 1
        with pytest.raises(UnknownVersion, match="choose from 1, 2"):
            await label(segmenter, version="3")
        file.write_text("versions = [3]")
        await segmenter.load("tiny")
        assert states(segmenter) == {"tiny/1": "unloaded", "tiny/2": "unloaded", "tiny/3": "ready"}
        assert await label(segmenter) == 2


async def test_a_list_whose_versions_all_fail_leaves_those_that_serve(tmp_path: Path) -> None:
    write_model(tmp_path, version=1, bias=RED)
    async with serving(tmp_path) as segmenter:
        (tmp_path / "tiny" / "model.toml").write_text("versions = [2]")
        with pytest.raises(ModelLoadError, match="tiny/2/model.onnx' is missing"):
            await segmenter.load("tiny")
        assert await label(segmenter) == 0


async def test_wrong_settings_leave_those_in_force(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_model(tmp_path)
    async with serving(tmp_path) as segmenter:
        (tmp_path / "tiny" / "model.toml").write_text("maxbatch = 2")
        with pytest.raises(ModelLoadError, match="unknown key 'maxbatch'"):
            await segmenter.load("tiny")
        assert "tiny/model.toml: unknown key 'maxbatch'" in reason(segmenter, "1")
        assert "model tiny keeps its settings" in caplog.text
        assert segmenter.ready()
        (tmp_path / "tiny" / "model.toml").write_text("max_batch = 2")
        await segmenter.load("tiny")
        assert reason(segmenter, "1") == ""


async def test_wrong_settings_stop_the_start(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "tiny" / "model.toml").write_text("maxbatch = 2")
    with pytest.raises(ModelLoadError, match="unknown key 'maxbatch'"):
        await Segmenter(
            SegmenterConfig(model_repository=tmp_path, provider="cpu", intra_op_threads=1)
        ).start()


async def test_an_alias_means_a_model_or_a_version(tmp_path: Path) -> None:
    write_model(tmp_path, version=1, bias=RED)
    write_model(tmp_path, version=2, bias=GREEN)
    write_model(tmp_path, "other", bias=BLUE)
    (tmp_path / "aliases.toml").write_text('street = "tiny"\nstable = "tiny/1"')
    async with serving(tmp_path, default_model="street") as segmenter:
        assert await label(segmenter) == 1
        assert await label(segmenter, "street", "1") == 0
        assert await label(segmenter, "stable") == 0
        assert await label(segmenter, "stable", "1") == 0
        with pytest.raises(UnknownVersion, match="stable means version 1 of model tiny"):
            await label(segmenter, "stable", "2")
        reply = await segmenter.segment(IMAGE, replace(OPTIONS, model="stable"))
        assert (reply.model, reply.version) == ("tiny", "1")
        assert segmenter.models()[1].aliases == (("stable", "1"), ("street", None))


async def test_an_alias_of_nothing_stops_the_start(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "aliases.toml").write_text('street = "tiny/2"')
    with pytest.raises(ModelLoadError, match="street means tiny/2, which does not serve: .* tiny"):
        await Segmenter(
            SegmenterConfig(model_repository=tmp_path, provider="cpu", intra_op_threads=1)
        ).start()


# Polling


@asynccontextmanager
async def looked_at(repository: Path, **options: Any) -> AsyncIterator[Segmenter]:
    """A server whose looks at the repository the test times: `await look(segmenter)`."""
    async with serving(repository, **options) as segmenter:
        yield segmenter


async def look(segmenter: Segmenter, times: int = 2) -> None:
    for _ in range(times):
        await segmenter._fleet.look()


async def test_what_changes_in_the_repository_is_followed(tmp_path: Path) -> None:
    write_model(tmp_path, version=1, bias=RED)
    told: list[list[str]] = []

    def changed(models: Sequence[ModelStatus]) -> None:
        told.append([f"{m.name}/{v.version}" for m in models for v in m.versions])

    async with looked_at(tmp_path, changed=changed) as segmenter:
        write_model(tmp_path, version=2, bias=GREEN)
        write_model(tmp_path, "other", bias=BLUE)
        await look(segmenter)
        assert await label(segmenter, "tiny") == 1
        assert await label(segmenter, "other") == 2
        assert told[-1] == ["other/1", "tiny/1", "tiny/2"]
        shutil.rmtree(tmp_path / "tiny" / "2")
        shutil.rmtree(tmp_path / "other")
        (tmp_path / "aliases.toml").write_text('street = "tiny"')
        await look(segmenter)
        assert await label(segmenter, "street") == 0
        assert states(segmenter) == {"tiny/1": "ready"}
        assert told[-1] == ["tiny/1"]


async def test_a_file_that_is_still_being_copied_waits(tmp_path: Path) -> None:
    write_model(tmp_path, version=1, bias=RED)
    path = write_model(tmp_path, version=2, bias=GREEN)
    whole = path.read_bytes()
    shutil.rmtree(path.parent)
    loads: list[str] = []

    def opened(path: Path) -> Network:
        loads.append(path.parent.name)
        return Session(path, provider="cpu", threads=1)

    async with looked_at(tmp_path, open_network=opened) as segmenter:
        write_broken(tmp_path, 2)
        for end in range(0, len(whole), len(whole) // 5 + 1):
            path.write_bytes(whole[:end])
            await look(segmenter, 1)
            assert loads == ["1"]
        path.write_bytes(whole)
        await look(segmenter)
        assert loads == ["1", "2"]
        assert await label(segmenter) == 1


async def test_only_what_changed_is_opened_again(tmp_path: Path) -> None:
    write_model(tmp_path, version=1)
    write_broken(tmp_path, 2)
    loads: list[str] = []

    def opened(path: Path) -> Network:
        loads.append(path.parent.name)
        return Session(path, provider="cpu", threads=1)

    async with looked_at(tmp_path, open_network=opened) as segmenter:
        assert loads == ["2", "1"]
        await look(segmenter, 4)
        write_model(tmp_path, version=3)
        await look(segmenter, 4)
        assert loads == ["2", "1", "3"]  # not the broken one again either
        os.utime(tmp_path / "tiny" / "3" / "model.onnx", ns=(1, 1))
        await look(segmenter)
        assert loads == ["2", "1", "3", "3"]


async def test_what_was_unloaded_stays_so_until_it_is_loaded(tmp_path: Path) -> None:
    write_model(tmp_path, "tiny")
    write_model(tmp_path, "other")
    async with looked_at(tmp_path) as segmenter:
        await segmenter.unload("tiny")
        write_model(tmp_path, "tiny", 2)
        await look(segmenter)
        assert [model.name for model in segmenter.models()] == ["other"]
        await segmenter.load("tiny")
        assert segmenter.models()[1].default_version == "2"


@contextmanager
def away(folder: Path) -> Iterator[None]:
    hidden = folder.rename(folder.with_name("hidden"))
    yield
    hidden.rename(folder)


async def test_a_repository_out_of_reach_takes_nothing_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository = tmp_path / "models"
    write_model(repository)
    async with looked_at(repository) as segmenter:
        with away(repository):
            await look(segmenter, 3)
            assert await label(segmenter) in {0, 1, 2}
        assert caplog.text.count("is not a folder") == 1  # not at every look
        await look(segmenter)
        assert states(segmenter) == {"tiny/1": "ready"}


async def test_wrong_names_and_aliases_are_told_of_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_model(tmp_path)
    (tmp_path / "aliases.toml").write_text('street = "tiny"')
    async with looked_at(tmp_path) as segmenter:
        write_model(tmp_path, "my model", model_contract=contract())
        write_model(tmp_path, "other")
        (tmp_path / "aliases.toml").write_text("street = 7")
        await look(segmenter)
        assert [model.name for model in segmenter.models()] == ["other", "tiny"]
        assert await label(segmenter, "street") in {0, 1, 2}
        assert "'my model': use letters" in caplog.text
        assert "the aliases stay as they are" in caplog.text


async def test_the_looks_come_by_themselves_and_end_with_the_server(tmp_path: Path) -> None:
    write_model(tmp_path, version=1, bias=RED)
    before = asyncio.all_tasks()
    async with (
        serving(tmp_path, model_poll_s=0.02) as segmenter,
        under_load(segmenter, 2) as labels,
    ):
        await until(labels, 0)
        write_model(tmp_path, version=2, bias=GREEN)
        await until(labels, 1)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_look_that_fails_is_not_the_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path, version=1, bias=RED)
    async with serving(tmp_path, model_poll_s=0.02) as segmenter:
        with monkeypatch.context() as patch:
            patch.setattr("service.core.models.manager.look", lambda root: 1 / 0)
            await eventually(lambda: "looking at the model repository failed" in caplog.text)
        write_model(tmp_path, version=2, bias=GREEN)
        await eventually(lambda: segmenter.models()[0].default_version == "2")


@pytest.fixture(autouse=True)
def _all_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
