"""Which model and version a request means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from model.contract import Contract
from service.core.models.model_settings import Alias
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

    @property
    def path(self) -> Path: ...


E = TypeVar("E", bound=Entry)


class Catalog(Generic[E]):
    """Entries by name and version; a model's default is its highest version, or the one set."""

    def __init__(self, default_model: str | None = None) -> None:
        """default_model: meant when a request names none; without one, a lone model is meant."""
        self._default_model = default_model
        self._entries: dict[str, dict[str, E]] = {}
        self._defaults: dict[str, str] = {}
        self._aliases: Mapping[str, Alias] = {}
        # What was found since the last change: every request asks, and twice.
        self._found: dict[tuple[str | None, str | None], E] = {}

    def __contains__(self, name: str) -> bool:
        """Whether a request may name it: a model or an alias of one."""
        return name in self._entries or (
            name in self._aliases and self._aliases[name].model in self._entries
        )

    def names(self) -> list[str]:
        return sorted(self._entries)

    def entries(self) -> list[E]:
        return [entry for versions in self._entries.values() for entry in versions.values()]

    def get(self, name: str, version: str) -> E | None:
        return self._entries.get(name, {}).get(version)

    def versions(self, name: str) -> list[E]:
        """Ascending; empty for an unknown model."""
        return list(self._entries.get(name, {}).values())

    def add(self, entry: E) -> None:
        """In place of one of the same name and version."""
        self._found.clear()
        versions = {**self._entries.get(entry.name, {}), entry.version: entry}
        self._entries[entry.name] = {v: versions[v] for v in sorted(versions, key=int)}

    def remove(self, entry: E) -> None:
        """A model without versions is gone."""
        self._found.clear()
        versions = self._entries.get(entry.name, {})
        if versions.get(entry.version) is entry:
            del versions[entry.version]
        if not versions:
            self._entries.pop(entry.name, None)
            self._defaults.pop(entry.name, None)

    def set_default(self, name: str, version: str | None) -> None:
        """The version of a model that is meant when none is named, while it is there.

        None: the highest.
        """
        self._found.clear()
        if version is None:
            self._defaults.pop(name, None)
        else:
            self._defaults[name] = version

    def set_aliases(self, aliases: Mapping[str, Alias]) -> None:
        """In place of those before. A model's own name goes before an alias."""
        self._found.clear()
        self._aliases = aliases

    def astray(self) -> dict[str, Alias]:
        """The aliases of what is not there."""
        return {
            alias: target
            for alias, target in self._aliases.items()
            if target.model not in self._entries
            or target.version not in (None, *self._entries[target.model])
        }

    def find(self, name: str | None, version: str | None) -> E:
        """Raises: InvalidParameter, UnknownModel, UnknownVersion, ModelNotReady."""
        entry = self._found.get((name, version))
        if entry is None:
            # Only what there is is kept, so made-up names take no memory.
            entry = self._found[name, version] = self._find(name, version)
        if entry.state is not ModelState.READY:
            raise ModelNotReady(
                f"model {entry.name} version {entry.version} is {entry.state}: ask its operator to "
                "look at the log, or choose another"
            )
        return entry

    def default_name(self) -> str | None:
        """Names the model that is meant when none is named; None when one must be."""
        if self._default_model is not None:
            return self._own_name(self._default_model)
        return next(iter(self._entries)) if len(self._entries) == 1 else None

    def metric_label(self, name: str | None) -> str:
        """Names the model that a request means, for a time series; "" for made-up names, which must
        not make one each."""
        own = self._own_name(name) if name else self.default_name()
        return own if own in self._entries else ""

    def status(self, name: str | None, version: str | None) -> tuple[ModelStatus, VersionStatus]:
        """Finds what is meant as `find` does, whether it is ready or not.

        Raises: InvalidParameter, UnknownModel, UnknownVersion.
        """
        entry = self._find(name, version)
        model = self._status(entry.name)
        return model, next(v for v in model.versions if v.version == entry.version)

    def _find(self, name: str | None, version: str | None) -> E:
        """Raises: InvalidParameter, UnknownModel, UnknownVersion."""
        name = name or self._default_model
        if name is None:
            if not self._entries:
                raise UnknownModel("no model is loaded: ask the operator to load one")
            if len(self._entries) != 1:
                raise InvalidParameter(
                    f"several models are served, say which: {', '.join(self.names())}"
                )
            (name,) = self._entries
        name, version = self._resolve(name, version or None)
        versions = self._entries.get(name)
        if versions is None:
            raise UnknownModel(
                f"there is no model {quoted(name)}: choose from "
                f"{', '.join(self.names()) or 'none, they are still loading'}"
            )
        version = version or self._default(name)
        if version not in versions:
            raise UnknownVersion(
                f"model {name} has no version {quoted(version)}: choose from {', '.join(versions)}"
            )
        return versions[version]

    def statuses(self) -> list[ModelStatus]:
        """Lists every model by name, its versions ascending."""
        return [self._status(name) for name in self.names()]

    def _status(self, name: str) -> ModelStatus:
        return ModelStatus(
            name,
            self._default(name),
            tuple(
                VersionStatus(e.version, e.state, e.contract, e.provider, e.path)
                for e in self._entries[name].values()
            ),
            tuple(
                (alias, target.version)
                for alias, target in sorted(self._aliases.items())
                if target.model == name and alias not in self._entries
            ),
        )

    def _own_name(self, name: str) -> str:
        """Returns the name of an alias's model, any other name as it is."""
        if name in self._entries or name not in self._aliases:
            return name
        return self._aliases[name].model

    def _resolve(self, name: str, version: str | None) -> tuple[str, str | None]:
        """The model's own name. Raises: UnknownVersion when an alias means another version."""
        if name in self._entries or name not in self._aliases:
            return name, version
        alias = self._aliases[name]
        if version is not None and alias.version not in (None, version):
            raise UnknownVersion(
                f"{name} means version {alias.version} of model {alias.model}: leave the version "
                f"out, or ask model {alias.model} for {quoted(version)}"
            )
        return alias.model, alias.version or version

    def _default(self, name: str) -> str:
        versions = self._entries[name]
        chosen = self._defaults.get(name)
        return chosen if chosen in versions else list(versions)[-1]
