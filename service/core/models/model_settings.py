"""Reads the two files of a repository that are not models: `<name>/model.toml`, `aliases.toml`.

Both may be missing. A key that is not known is refused by name: a setting with a typing mistake in
it would otherwise be no setting at all.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from service.errors import ModelLoadError, quoted

T = TypeVar("T")

SETTINGS_FILE: Final = "model.toml"
ALIASES_FILE: Final = "aliases.toml"
# Names become part of URLs and metric labels; the same rule as the contract's model_name. None of
# them can mean a folder outside the repository.
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
VERSION: Final = re.compile(r"[1-9][0-9]{0,8}")
NAME_RULE: Final = (
    "use letters, digits, '.', '_' and '-', at most 128, starting with a letter or digit"
)
DEFAULT_ALIAS: Final = "default"
"""Alias that is also meant by requests which name no model, where nothing else is set."""
_KEYS: Final = ("versions", "default_version", "max_batch", "warm_up_sizes", "description")
_LONGEST_DESCRIPTION: Final = 200
_SIZE: Final = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Says how one model is served.

    latest: how many versions, the highest that load; None: all. only: these versions and no others,
    ascending; empty: no such list. default_version: the one meant when none is asked for; None: the
    highest. max_batch, warm_up_sizes (height, width): for this model, besides the server's.
    description: what the model is for, in a line.
    """

    latest: int | None = None
    only: tuple[str, ...] = ()
    default_version: str | None = None
    max_batch: int | None = None
    warm_up_sizes: tuple[tuple[int, int], ...] = ()
    description: str = ""

    def candidates(self, found: Iterable[str]) -> list[str]:
        """Lists the versions to serve of those `found`, highest first; `latest` are enough."""
        return sorted(self.only or found, key=int, reverse=True)


Alias = tuple[str, str | None]
"""The model that another name means, and the version it means; None for the default."""


def read_settings(folder: Path) -> ModelSettings:
    """Reads those of the model in `folder`, or returns the defaults. Raises: ModelLoadError."""
    return _read(folder / SETTINGS_FILE, _settings)


def read_aliases(repository: Path) -> dict[str, Alias]:
    """Reads aliases by name; none when there is no such file. Raises: ModelLoadError."""
    return _read(repository / ALIASES_FILE, _aliases)


def _read(path: Path, make: Callable[[Mapping[str, Any]], T]) -> T:
    try:
        table = tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        table = {}
    # Besides TOMLDecodeError: no UTF-8, numbers of thousands of digits, lists in lists in lists.
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelLoadError(f"{path} cannot be read as TOML: {reason}") from error
    try:
        return make(table)
    except ValueError as error:
        raise ModelLoadError(f"{path}: {error}") from error


def _settings(table: Mapping[str, Any]) -> ModelSettings:
    """Raises: ValueError."""
    if unknown := sorted(set(table) - set(_KEYS)):
        raise ValueError(f"unknown key {quoted(unknown[0])}: there are {', '.join(_KEYS)}")
    latest, only = _versions(table.get("versions", "all"))
    default = table.get("default_version")
    if default is not None:
        default = _version("default_version", default)
        if only and default not in only:
            raise ValueError(f"default_version {default} is not among versions")
    max_batch = table.get("max_batch")
    if max_batch is not None and not _positive(max_batch):
        raise ValueError(f"max_batch is {max_batch!r}: give a whole number from 1 up")
    sizes = _sizes(table.get("warm_up_sizes", []))
    description = table.get("description", "")
    if not isinstance(description, str) or not (description.isprintable() or not description):
        raise ValueError("description: give one line of text")
    if len(description) > _LONGEST_DESCRIPTION:
        raise ValueError(f"description: give at most {_LONGEST_DESCRIPTION} characters")
    return ModelSettings(latest, only, default, max_batch, sizes, description)


def _aliases(table: Mapping[str, Any]) -> dict[str, Alias]:
    """Raises: ValueError."""
    aliases = {}
    for name, target in table.items():
        if not NAME.fullmatch(name):
            raise ValueError(f"alias {quoted(name)}: {NAME_RULE}")
        model, _, version = target.partition("/") if isinstance(target, str) else ("", "", "")
        pinned = f"{model}/{version}" == target
        if not NAME.fullmatch(model) or (pinned and not VERSION.fullmatch(version)):
            raise ValueError(
                f"alias {name} is {quoted(str(target))}: give a text, 'model' or 'model/version'"
            )
        aliases[name] = (model, version or None)
    return aliases


def _versions(wanted: object) -> tuple[int | None, tuple[str, ...]]:
    """Reads `latest` and `only` out of the key `versions`. Raises: ValueError."""
    if wanted == "all":
        return None, ()
    if isinstance(wanted, dict) and set(wanted) == {"latest"} and _positive(wanted["latest"]):
        return wanted["latest"], ()
    if isinstance(wanted, list) and wanted:
        return None, tuple(sorted({_version("versions", number) for number in wanted}, key=int))
    raise ValueError(
        f'versions is {quoted(str(wanted))}: give "all", {{latest = 2}}, or a list such as [1, 3]'
    )


def _version(key: str, number: object) -> str:
    text = str(number)
    if isinstance(number, bool) or not VERSION.fullmatch(text):
        raise ValueError(f"{key} has {quoted(text)}: a version is a whole number from 1 up")
    return text


def _sizes(texts: object) -> tuple[tuple[int, int], ...]:
    found = [_SIZE.fullmatch(str(text)) for text in texts] if isinstance(texts, list) else [None]
    sizes = [(int(match[1]), int(match[2])) for match in found if match is not None]
    if len(sizes) != len(found):
        raise ValueError(
            f'warm_up_sizes is {quoted(str(texts))}: give a list such as ["360x480"], height first'
        )
    return tuple(sizes)


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
