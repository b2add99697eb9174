"""docs/training.md lists every field of a recipe, with its default, and no other."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from training.config import TrainConfig

PAGE = Path(__file__).resolve().parents[3] / "docs" / "training.md"
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
