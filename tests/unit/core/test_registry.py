"""A request means a loaded model and version."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.core.models.model_settings import ModelSettings
from service.core.models.registry import LoadedModel, ModelRegistry
from service.core.types import ModelState, Network
from service.errors import InvalidParameter, ModelNotReady, UnknownModel, UnknownVersion
from tests.tiny_models import contract


def network(provider: str = "cpu") -> Network:
    return Network(Path("model.onnx"), contract(), provider, ())


@dataclass
class Queue:
    alive: bool = True


def entry(name: str, version: str, *, alive: bool = True, provider: str = "cpu") -> LoadedModel:
    queue: Any = Queue(alive)
    return LoadedModel(name, version, network(provider), queue)


def registry(*models: LoadedModel, default_model: str | None = None) -> ModelRegistry:
    result = ModelRegistry(default_model)
    for model in models:
        result.add(model)
    return result


A1, A2, A10, B1 = entry("a", "1"), entry("a", "2"), entry("a", "10"), entry("b", "1")


def test_a_lone_models_highest_version_is_the_default() -> None:
    assert registry(A10, A1, A2).find(None, None) is A10
    assert registry(A10, A1, A2).find("a", None) is A10


def test_a_version_can_be_asked_for() -> None:
    assert registry(A10, A1, A2).find("a", "2") is A2
    assert registry(A10, A1).find(None, "1") is A1


def test_of_several_models_one_must_be_named_or_be_the_default() -> None:
    with pytest.raises(InvalidParameter, match="several models are served, say which: a, b"):
        registry(B1, A1).find(None, None)
    assert registry(B1, A1, default_model="b").find(None, None) is B1
    assert registry(B1, A1, default_model="b").find("a", None) is A1


def test_the_alias_default_is_meant_where_nothing_else_is_set() -> None:
    found, chosen = registry(B1, A1, A2), registry(B1, A1, default_model="b")
    for each in (found, chosen):
        each.set_aliases({"default": ("a", "1")})
    assert (found.find(None, None), found.default_name()) == (A1, "a")
    assert (chosen.find(None, None), chosen.default_name()) == (B1, "b")


def test_an_unknown_model_is_quoted_safely_with_those_there_are() -> None:
    with pytest.raises(UnknownModel, match=r"no model 'x\\r\\ny': choose from a, b"):
        registry(B1, A1).find("x\r\ny", None)
    with pytest.raises(UnknownModel) as caught:
        registry(A1).find("x" * 10_000, None)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("version", ["3", "01", "latest", "-1", "1 "])
def test_an_unknown_version_is_refused_with_those_there_are(version: str) -> None:
    with pytest.raises(UnknownVersion, match=f"no version '{version}': choose from 1, 2, 10"):
        registry(A10, A1, A2).find("a", version)


def test_statuses_are_by_name_and_number() -> None:
    statuses = registry(B1, A10, A2).statuses()
    assert [(s.name, s.default_version) for s in statuses] == [("a", "10"), ("b", "1")]
    assert [v.version for v in statuses[0].versions] == ["2", "10"]
    assert statuses[0].default.contract == contract()
    assert statuses[0].default.precision == "fp32"
    assert statuses[0].default.provider == "cpu"


def test_what_was_found_is_looked_for_again_after_every_change() -> None:
    newer = entry("a", "2")
    found = registry(A1, A2)
    assert found.find("a", None) is A2
    found.add(newer)
    assert found.find("a", None) is newer
    found.configure("a", ModelSettings(default_version="1"))
    assert found.find("a", None) is A1
    found.configure("a", ModelSettings())
    assert found.find("a", None) is newer
    with pytest.raises(UnknownModel):
        found.find("b", None)
    found.set_aliases({"b": ("a", "1")})
    assert found.find("b", None) is A1
    found.set_aliases({"b": ("a", None)})
    assert found.find("b", None) is newer
    found.remove(newer)
    assert found.find("a", None) is A1 and found.find("b", None) is A1
    found.remove(A1)
    with pytest.raises(UnknownModel):
        found.find("a", None)


def test_one_that_was_found_and_then_failed_is_not_ready() -> None:
    queue: Any = Queue()
    model = LoadedModel("a", "1", network(), queue)
    found = registry(model, A2)
    assert found.find("a", "1") is model
    queue.alive = False
    assert found.find("a", None) is A2
    with pytest.raises(ModelNotReady, match="model a version 1 is failed"):
        found.find("a", "1")


def test_made_up_names_make_no_time_series() -> None:
    both = registry(A1, B1)
    both.set_aliases({"prod": ("a", "1"), "gone": ("c", None)})
    assert both.metric_label("a") == both.metric_label("prod") == "a"
    assert both.metric_label("gone") == both.metric_label("made-up") == ""
    assert both.metric_label(None) == ""  # one of them must be named
    assert registry(A1).metric_label(None) == "a"
    assert registry().metric_label(None) == ""


def test_the_default_is_named_by_its_own_name() -> None:
    assert registry(A1).default_name() == "a"
    assert registry(A1, B1).default_name() is None
    aliased = registry(A1, B1, default_model="prod")
    aliased.set_aliases({"prod": ("b", None)})
    assert aliased.default_name() == "b"


def test_a_status_is_of_what_a_request_means_ready_or_not() -> None:
    failed = entry("a", "2", alive=False)
    found = registry(A1, failed, B1)
    found.set_aliases({"prod": ("a", "1")})
    model, version = found.status("a", None)
    assert (model.name, version.version, version.state) == ("a", "2", ModelState.FAILED)
    model, version = found.status("prod", None)
    assert (model.name, model.default_version, version.version) == ("a", "2", "1")
    with pytest.raises(UnknownVersion, match="model a has no version '7'"):
        found.status("a", "7")
    with pytest.raises(UnknownModel, match="choose from none, they are still loading"):
        registry().status("a", None)
