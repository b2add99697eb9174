"""Which model and version a request means."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from model.contract import Contract
from service.core.types import ModelState, ModelStatus, VersionStatus
from service.errors import (
    InvalidParameter,
    ModelNotReady,
    UnknownModel,
    UnknownVersion,
    quoted,
)


class Entry(Protocol):
    """One version of one model. version: a positive integer in decimal."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def state(self) -> ModelState: ...

    @property
    def contract(self) -> Contract: ...

    @property
    def provider(self) -> str: ...


E = TypeVar("E", bound=Entry)


class Catalog(Generic[E]):
    """Entries by name and version; a model's default is its highest version."""

    def __init__(self, default_model: str | None = None) -> None:
        """default_model: meant when a request names none; without one, a lone model is meant."""
        self._default_model = default_model
        self._entries: dict[str, dict[str, E]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        return sorted(self._entries)

    def entries(self) -> list[E]:
        return [entry for versions in self._entries.values() for entry in versions.values()]

    def add(self, entry: E) -> None:
        versions = {**self._entries.get(entry.name, {}), entry.version: entry}
        self._entries[entry.name] = {v: versions[v] for v in sorted(versions, key=int)}

    def find(self, name: str | None, version: str | None) -> E:
        """Raises: InvalidParameter, UnknownModel, UnknownVersion, ModelNotReady."""
        name = name or self._default_model
        if name is None:
            if len(self._entries) != 1:
                raise InvalidParameter(
                    f"several models are served, say which: {', '.join(self.names())}"
                )
            (name,) = self._entries
        versions = self._entries.get(name)
        if versions is None:
            raise UnknownModel(
                f"there is no model {quoted(name)}: choose from {', '.join(self.names())}"
            )
        version = version or _highest(versions)
        if version not in versions:
            raise UnknownVersion(
                f"model {name} has no version {quoted(version)}: choose from {', '.join(versions)}"
            )
        entry = versions[version]
        if entry.state is not ModelState.READY:
            raise ModelNotReady(
                f"model {name} version {version} is {entry.state}: ask its operator to look at the "
                "log, or choose another"
            )
        return entry

    def statuses(self) -> list[ModelStatus]:
        """By name; versions ascending."""
        return [
            ModelStatus(
                name,
                _highest(versions),
                tuple(
                    VersionStatus(e.version, e.state, e.contract, e.provider)
                    for e in versions.values()
                ),
            )
            for name, versions in sorted(self._entries.items())
        ]


def _highest(versions: dict[str, E]) -> str:
    return list(versions)[-1]
