"""A repository that is looked at while the server runs."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.changes import due_again
from service.core.engines.onnx_runtime import open_onnx_runtime
from service.core.segmenter import Segmenter
from service.core.types import IndexEntry, ModelStatus, Network
from service.errors import ModelLoadError
from tests.tiny_models import contract, write_model
from tests.unit.core.repositories import (
    BLUE,
    GREEN,
    RED,
    label,
    states,
    under_load,
    until_all,
    write_broken,
)
from tests.unit.core.segmenters import serving
from tests.waiting import soon


@asynccontextmanager
async def looked_at(repository: Path, **options: Any) -> AsyncIterator[Segmenter]:
    """A server whose looks at the repository the test times: `await look(segmenter)`."""
    async with serving(repository, **options) as segmenter:
        yield segmenter


async def look(segmenter: Segmenter, times: int = 2) -> None:
    for _ in range(times):
        await segmenter._manager.look()


async def test_what_changes_in_the_repository_is_followed(tmp_path: Path) -> None:
    write_model(tmp_path, version=1, bias=RED)
    told: list[list[str]] = []

    def changed(models: Sequence[ModelStatus], index: Sequence[IndexEntry]) -> None:
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
        return open_onnx_runtime(path, provider="cpu", threads=1)

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
        return open_onnx_runtime(path, provider="cpu", threads=1)

    async with looked_at(tmp_path, open_network=opened) as segmenter:
        assert loads == ["2", "1"]
        await look(segmenter, 4)
        write_model(tmp_path, version=3)
        await look(segmenter, 4)
        assert loads.count("2") == 4, "at the start, and at looks 2, 4 and 8"
        assert [version for version in loads if version != "2"] == ["1", "3"]
        os.utime(tmp_path / "tiny" / "3" / "model.onnx", ns=(1, 1))
        await look(segmenter)
        assert [version for version in loads if version != "2"] == ["1", "3", "3"]


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
        await until_all(labels, 0)
        write_model(tmp_path, version=2, bias=GREEN)
        await until_all(labels, 1)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_look_that_fails_is_not_the_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path, version=1, bias=RED)
    async with serving(tmp_path, model_poll_s=0.02) as segmenter:
        with monkeypatch.context() as patch:
            patch.setattr("service.core.models.manager.look", lambda root: 1 / 0)
            await soon(lambda: "looking at the model repository failed" in caplog.text)
        write_model(tmp_path, version=2, bias=GREEN)
        await soon(lambda: segmenter.models()[0].default_version == "2")


@pytest.fixture(autouse=True)
def _all_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


async def test_a_version_that_failed_for_a_lack_is_tried_again_and_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lacking: list[Path] = []

    def opened(path: Path) -> Network:
        if path in lacking:
            raise ModelLoadError(f"{path} cannot be read: Too many open files")
        return open_onnx_runtime(path, provider="cpu", threads=1)

    write_model(tmp_path, version=1, bias=RED)
    async with looked_at(tmp_path, open_network=opened) as segmenter:
        lacking.append(write_model(tmp_path, version=2, bias=GREEN))
        await look(segmenter, 12)
        assert states(segmenter) == {"tiny/1": "ready", "tiny/2": "failed"}
        assert caplog.text.count("model tiny version 2 failed to load") == 1
        lacking.clear()
        await look(segmenter, 16)
        assert states(segmenter) == {"tiny/1": "ready", "tiny/2": "ready"}
        assert await label(segmenter) == 1


def test_tries_come_further_and_further_apart() -> None:
    looks: dict[str, int] = {}
    tried = [n for n in range(1, 201) if due_again(looks, {"tiny"})]
    assert tried == [2, 4, 8, 16, 32, 64, 128, 192]
    assert due_again(looks, ()) == set() == set(looks)
