"""Holds the models that serve, and tells which of them a request means."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from model.contract import Contract
from service.core.batching.policy import InferenceRequest, Postprocess
from service.core.batching.queue import BatchQueue
from service.core.models.model_settings import (
    ALIASES_FILE,
    DEFAULT_ALIAS,
    Alias,
    ModelSettings,
)
from service.core.types import ModelState, ModelStatus, Network, UInt8Array, VersionStatus
from service.errors import (
    InvalidParameter,
    ModelLoadError,
    ModelNotReady,
    UnknownModel,
    UnknownVersion,
    quoted,
)


@dataclass(eq=False, slots=True)
class LoadedModel:
    """Holds one version of a model. Whoever uses it does so in its `with` block.

    It takes requests from `Loader.start` to `close`. source: what it was made of, see `source_of`.
    palette: see `Contract.palette`. lost: whether the watchdog has given it up.
    """

    name: str
    version: str
    network: Network
    queue: BatchQueue
    source: object = None
    threads: Sequence[threading.Thread] = ()
    palette: npt.NDArray[np.uint8] = field(init=False)
    lost: bool = False
    _users: int = 0
    _unused: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.palette = self.contract.palette()

    @property
    def contract(self) -> Contract:
        return self.network.contract

    @property
    def provider(self) -> str:
        return self.network.provider

    @property
    def state(self) -> ModelState:
        return ModelState.READY if self.queue.alive else ModelState.FAILED

    @property
    def shared_instances(self) -> int:
        """Counts those that share the device."""
        return sum(not instance.full_device for instance in self.network.instances)

    def put(
        self,
        request: InferenceRequest,
        image: UInt8Array,
        postprocess: Postprocess | None = None,
        *,
        wants_logits: bool = False,
    ) -> None:
        """Queues an image, see `BatchQueue.put`, as soon as the network can run its size."""
        put = partial(self.queue.put, request, image, postprocess, wants_logits=wants_logits)
        if self.network.prepare is None:
            put()
        else:
            self.network.prepare(image.shape[0], image.shape[1], put)

    def close(self) -> None:
        """Fails what it still has with ShuttingDown."""
        self.queue.close()

    def join(self, timeout_s: float) -> bool:
        """Waits, after `close`, for the end of the device threads; returns whether they ended."""
        ends_s = time.monotonic() + timeout_s
        for thread in self.threads:
            thread.join(max(0.0, ends_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self.threads)

    async def until_unused(self) -> None:
        if self._users:
            await self._unused.wait()

    def __enter__(self) -> Self:
        self._users += 1
        self._unused.clear()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._users -= 1
        if not self._users:
            self._unused.set()


class ModelRegistry:
    """Holds models by name and version; the default is the highest version, or the one set."""

    def __init__(self, default_model: str | None = None) -> None:
        """default_model: meant when a request names none; without one, the alias `default`, or a
        lone model."""
        self._default_model = default_model
        self._models: dict[str, dict[str, LoadedModel]] = {}
        self._settings: dict[str, ModelSettings] = {}
        self._aliases: Mapping[str, Alias] = {}
        # What was found since the last change: every request asks, and twice.
        self._found: dict[tuple[str | None, str | None], LoadedModel] = {}

    def __contains__(self, name: str) -> bool:
        """Tells whether a request may name it: a model or an alias of one."""
        return name in self._models or (
            name in self._aliases and self._aliases[name][0] in self._models
        )

    def names(self) -> list[str]:
        return sorted(self._models)

    def models(self) -> list[LoadedModel]:
        return [model for versions in self._models.values() for model in versions.values()]

    def get(self, name: str, version: str) -> LoadedModel | None:
        return self._models.get(name, {}).get(version)

    def versions(self, name: str) -> list[LoadedModel]:
        """Lists them ascending; empty for an unknown model."""
        return list(self._models.get(name, {}).values())

    def add(self, model: LoadedModel) -> None:
        """Puts it in place of one of the same name and version."""
        self._found.clear()
        versions = {**self._models.get(model.name, {}), model.version: model}
        self._models[model.name] = {v: versions[v] for v in sorted(versions, key=int)}

    def remove(self, model: LoadedModel) -> None:
        """Takes it out; a name without versions is gone."""
        self._found.clear()
        versions = self._models.get(model.name, {})
        if versions.get(model.version) is model:
            del versions[model.version]
        if not versions:
            self._models.pop(model.name, None)
            self._settings.pop(model.name, None)

    def configure(self, name: str, settings: ModelSettings) -> None:
        """Takes a model's description, and the version meant when none is named, while it is
        there."""
        self._found.clear()
        self._settings[name] = settings

    def set_aliases(self, aliases: Mapping[str, Alias]) -> None:
        """Replaces those before. A model's own name goes before an alias."""
        self._found.clear()
        self._aliases = aliases

    def dangling_aliases(self) -> dict[str, Alias]:
        """Returns the aliases of what is not there."""
        return {
            alias: (model, version)
            for alias, (model, version) in self._aliases.items()
            if version not in (None, *self._models.get(model, {})) or model not in self._models
        }

    def check_names(self, repository: Path) -> None:
        """Raises: ModelLoadError unless the default model and the aliases mean something."""
        names = ", ".join(self.names())
        if self._default_model is not None and self._default_model not in self:
            raise ModelLoadError(
                f"the default model {self._default_model!r} is not in the repository, which "
                f"has {names}"
            )
        for alias, (model, version) in self.dangling_aliases().items():
            meant = f"{model}/{version}" if version else model
            raise ModelLoadError(
                f"{repository / ALIASES_FILE}: {alias} means {meant}, which does not serve: "
                f"there are {names}"
            )

    def find(self, name: str | None, version: str | None) -> LoadedModel:
        """Finds what a request of these names means.

        Raises: InvalidParameter, UnknownModel, UnknownVersion, ModelNotReady.
        """
        model = self._found.get((name, version))
        if model is None:
            # Only what there is is kept, so made-up names take no memory.
            model = self._found[name, version] = self._find(name, version)
        if model.state is not ModelState.READY:
            raise ModelNotReady(
                f"model {model.name} version {model.version} is {model.state}: ask its operator to "
                "look at the log, or choose another"
            )
        return model

    def default_name(self) -> str | None:
        """Names the model that is meant when none is named; None when one must be."""
        if meant := self._meant():
            return self.resolve_alias(meant)
        return next(iter(self._models)) if len(self._models) == 1 else None

    def _meant(self) -> str | None:
        """Returns the name or alias that is set for requests which name none."""
        if self._default_model is None and DEFAULT_ALIAS in self._aliases:
            return DEFAULT_ALIAS
        return self._default_model

    def resolve_alias(self, name: str) -> str:
        """Returns the name of an alias's model, any other name as it is."""
        if name in self._models or name not in self._aliases:
            return name
        return self._aliases[name][0]

    def metric_label(self, name: str | None) -> str:
        """Names the model that a request means, for a time series; "" for made-up names, which must
        not make one each."""
        own = self.resolve_alias(name) if name else self.default_name()
        return own if own in self._models else ""

    def status(self, name: str | None, version: str | None) -> tuple[ModelStatus, VersionStatus]:
        """Finds what is meant as `find` does, whether it is ready or not.

        Raises: InvalidParameter, UnknownModel, UnknownVersion.
        """
        found = self._find(name, version)
        status = self._status(found.name)
        return status, next(v for v in status.versions if v.version == found.version)

    def _find(self, name: str | None, version: str | None) -> LoadedModel:
        """Raises: InvalidParameter, UnknownModel, UnknownVersion."""
        name = name or self._meant()
        if name is None:
            if not self._models:
                raise UnknownModel("no model is loaded: ask the operator to load one")
            if len(self._models) != 1:
                raise InvalidParameter(
                    f"several models are served, say which: {', '.join(self.names())}"
                )
            (name,) = self._models
        name, version = self._resolve(name, version or None)
        versions = self._models.get(name)
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
                VersionStatus(
                    m.version,
                    m.state,
                    m.contract,
                    m.provider,
                    m.network.path,
                    m.network.engine,
                    m.network.precision,
                    m.network.instead_of,
                )
                for m in self._models[name].values()
            ),
            tuple(
                (alias, version)
                for alias, (model, version) in sorted(self._aliases.items())
                if model == name and alias not in self._models
            ),
            self._settings[name].description if name in self._settings else "",
        )

    def _resolve(self, name: str, version: str | None) -> tuple[str, str | None]:
        """Replaces an alias by what it means. Raises: UnknownVersion if that is another."""
        if name in self._models or name not in self._aliases:
            return name, version
        model, pinned = self._aliases[name]
        if version is not None and pinned not in (None, version):
            raise UnknownVersion(
                f"{name} means version {pinned} of model {model}: leave the version out, or ask "
                f"model {model} for {quoted(version)}"
            )
        return model, pinned or version

    def _default(self, name: str) -> str:
        versions = self._models[name]
        settings = self._settings.get(name)
        chosen = settings.default_version if settings else None
        return chosen if chosen in versions else list(versions)[-1]
