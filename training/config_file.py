"""Reads config files: `extends`, `section.field=value` overrides, and names that fields had before.

A file may name another that it extends, by a path relative to itself; what it says itself wins,
field by field. What the fields mean is left to `training.config`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

EXTENDS = "extends"

Raw = dict[str, Any]
"""Sections and fields as YAML has them."""

_RENAMED = {
    ("data", "shown"): ("mask", {}),
    ("network", "normalisation"): ("preprocessing", {}),
    ("optimizer", "learned"): ("trainable", {"score": "score_layers"}),
}
"""Section and former field to the field now, with the values that are called otherwise."""


class ConfigError(ValueError):
    """A config cannot be read or has a wrong value; the message names file and field."""


def read_config(path: Path, _heirs: tuple[Path, ...] = ()) -> Raw:
    """Read the file with everything it extends, without the word `extends`.

    `_heirs`: the files that led here, which must not come again.
    Raises: ConfigError if a file is missing, no mapping, or extends itself.
    """
    heirs = (*_heirs, path.resolve())
    raw = _read(path, _heirs)
    if EXTENDS not in raw:
        return raw
    parent = raw.pop(EXTENDS)
    if not isinstance(parent, str) or not parent:
        raise ConfigError(f"{path}: {EXTENDS}: want the path of one recipe, got {parent!r}")
    base = path.parent / parent
    if base.resolve() in heirs:
        names = " -> ".join(heir.name for heir in (*heirs, base))
        raise ConfigError(f"{path}: {EXTENDS}: recipes extend each other in a circle, {names}")
    return merged(read_config(base, heirs), raw)


def merged(base: Raw, changes: Raw) -> Raw:
    """Apply `changes` to `base`: sections field by field, anything else (null too) as a whole."""
    result = dict(base)
    for name, value in changes.items():
        inner = result.get(name)
        both = isinstance(inner, dict) and isinstance(value, dict)
        result[name] = merged(inner, value) if both else value  # type: ignore[arg-type]
    return result


def renamed(raw: Raw, source: str) -> Raw:
    """Replace former names of fields and values, which people's files and checkpoints have.

    Raises: ConfigError where a field is given by both of its names."""
    result = dict(raw)
    for (section, before), (now, values) in _RENAMED.items():
        fields = result.get(section)
        if not isinstance(fields, dict) or before not in fields:
            continue
        if now in fields:
            raise ConfigError(
                f"{source}: {section}.{before} is called {section}.{now} now: leave the former out"
            )
        fields = dict(fields)
        value = fields.pop(before)
        fields[now] = values.get(value, value) if isinstance(value, str) else value
        result[section] = fields
    return result


def override(raw: Raw, text: str) -> None:
    """Change `raw` by `section.field=value`, the value in YAML. Raises: ConfigError."""
    key, equals, value = text.partition("=")
    *sections, name = key.strip().split(".")
    if not equals or not name:
        raise ConfigError(f"override {text!r}: want section.field=value")
    for section in sections:
        inner = raw.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"override {text!r}: {section!r} is not a section")
        raw = inner
    try:
        raw[name] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"override {text!r}: the value is not YAML") from error


def _read(path: Path, heirs: tuple[Path, ...]) -> Raw:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        by = f", which {heirs[-1]} extends" if heirs else ""
        raise ConfigError(f"cannot read the recipe {path}{by}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: what it takes for a date, as 2024-13-01, and is none.
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: want a mapping of sections, got {type(raw).__name__}")
    return raw
