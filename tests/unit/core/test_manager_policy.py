"""Versions of a model are served by policy, under the names that they have."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from service.config import SegmenterConfig
from service.core.segmenter import Segmenter
from service.errors import ModelLoadError, UnknownVersion
from tests.tiny_models import write_model
from tests.unit.core.repositories import (
    BLUE,
    GREEN,
    IMAGE,
    OPTIONS,
    RED,
    label,
    reason,
    states,
    write_broken,
)
from tests.unit.core.segmenters import serving


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


@pytest.fixture(autouse=True)
def _all_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
