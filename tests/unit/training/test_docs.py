"""docs/recipe.md lists every field of a recipe, with its default, and no other; docs/datasets.md
every data set."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from training.config import TrainConfig
from training.datasets import DATASETS, class_info

PAGE = Path(__file__).resolve().parents[3] / "docs" / "recipe.md"
DATASETS_PAGE = PAGE.with_name("datasets.md")
ROW = re.compile(r"^\| `([a-z0-9_.]+)` \| ([^|]+) \|", re.M)


def fields(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(section.field, default) of pydantic models and dataclasses alike."""
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            yield prefix + field.name, field.default
        return
    for name, info in kind.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and (
            issubclass(inner, BaseModel) or dataclasses.is_dataclass(inner)
        ):
            yield from fields(inner, f"{name}.")
        else:
            yield prefix + name, info.default


def shown(default: Any) -> str:
    if default in (PydanticUndefined, dataclasses.MISSING):
        return "required"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return "none" if default is None else f"`{default}`"


def test_every_field_is_documented_with_its_default() -> None:
    documented = {name: default.strip() for name, default in ROW.findall(PAGE.read_text())}
    assert documented == {name: shown(default) for name, default in fields(TrainConfig)}


def test_every_data_set_is_documented() -> None:
    """docs/datasets.md has a row for each, with its classes and the splits' sizes."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]+) \|", DATASETS_PAGE.read_text(), re.M)
    documented = {name: (classes, splits.strip()) for name, classes, splits in rows}
    geometric = documented["siftflow_geometric"]
    assert geometric[1] == "the same"
    documented["siftflow_geometric"] = (geometric[0], documented["siftflow"][1])
    expected = {}
    for name, form in DATASETS.items():
        sizes = ", ".join(f"{split} ({size})" for split, size in form.splits.items())
        classes = str(len(class_info(form, PAGE.parent).classes)) if form.classes else "yours"
        expected[name] = (classes, sizes if form.classes else "any")
    assert documented == expected
