"""The versions that serve: loaded, warmed up, replaced and unloaded while requests go on.

A new version takes requests once it has answered a picture of its own; the one before it takes no
more from then on, answers those it has, and is closed. One that cannot be loaded changes nothing
but its own state. One change at a time: two loads at once would take twice the memory.

All state is touched on the event loop only; threads read files and load networks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.core.engines.memory import trim_heap
from service.core.models.changes import Watch
from service.core.models.loader import Loader, Served, source_of
from service.core.models.model_settings import (
    ALIASES_FILE,
    ModelSettings,
    read_aliases,
    read_settings,
)
from service.core.models.registry import Catalog
from service.core.models.repository import Listing, ModelFile, ModelFolder, find, look, require
from service.core.types import IndexEntry, ModelState, ModelStatus
from service.errors import ModelLoadError, UnknownModel, quoted

Key = tuple[str, str]
"""Name and version."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a file does not serve. source: as of `Served`; None when it is none of the file's."""

    reason: str
    source: object


class Fleet:
    """`start`, then `load`, `unload` and `watch`, then `close`; who is wanted is in `catalog`."""

    def __init__(
        self,
        repository: Path,
        loader: Loader,
        *,
        default_model: str | None,
        changed: Callable[[list[ModelStatus]], None],
    ) -> None:
        """changed: told of the models that serve whenever they are others."""
        self.catalog: Catalog[Served] = Catalog(default_model)
        self._repository = repository
        self._loader = loader
        self._default_model = default_model
        self._changed = changed
        self._turn = asyncio.Lock()
        self._watch: Watch[object] = Watch()
        self._folders: dict[str, ModelFolder] = {}
        self._failures: dict[Key, _Failure] = {}
        self._loading: Key | None = None
        self._unloaded: set[str] = set()
        self._draining: set[Served] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._untold: list[str] = []
        self._look_failed = ""

    @property
    def busy(self) -> bool:
        """Whether a thread is loading a network."""
        return self._loader.busy

    async def start(self) -> None:
        """Serves every model. Raises: ModelLoadError, also when one has no version that loads."""
        async with self._turn:
            listing = await asyncio.to_thread(require, self._repository)
            self._watch.start(_stamps(listing))
            self._folders = listing.folders
            self.catalog.set_aliases(await asyncio.to_thread(read_aliases, self._repository))
            for name, folder in listing.folders.items():
                errors = await self._bring(folder)
                if errors and name not in self.catalog:
                    raise errors[0]  # which says it all
                self._tell()
            self._check_names()
        self._changed(self.catalog.statuses())

    async def load(self, name: str) -> None:
        """Reads a model's folder again and serves what is new, changed, or failed before.

        Raises: UnknownModel, or ModelLoadError when any of its versions failed; those that served
        go on.
        """
        # A caller who leaves does not stop it half way.
        await asyncio.shield(self._spawn(self._load(name)))

    async def unload(self, name: str) -> None:
        """Returns once all its requests are answered and it is closed; until `load` it stays so.

        Raises: UnknownModel.
        """
        async with self._turn:
            if not self.catalog.versions(name) and not any(
                key[0] == name for key in self._failures
            ):
                raise UnknownModel(
                    f"there is no model {quoted(name)} to unload: loaded are "
                    f"{', '.join(self.catalog.names()) or 'none'}"
                )
            self._unloaded.add(name)
            tasks = self._withdraw(name)
        self._changed(self.catalog.statuses())
        if tasks:  # not gathered: a caller who leaves does not stop them
            await asyncio.wait(tasks)

    def index(self) -> list[IndexEntry]:
        """Every version known, by name and number."""
        states: dict[Key, tuple[ModelState, str]] = {}
        for folder in self._folders.values():
            for file in folder.files:
                states[folder.name, file.version] = (ModelState.UNLOADED, "")
        for served in self._draining:
            states[served.name, served.version] = (ModelState.DRAINING, "")
        for key, failure in self._failures.items():
            states[key] = (ModelState.FAILED, failure.reason)
        if self._loading is not None:
            states[self._loading] = (ModelState.LOADING, "")
        for served in self.catalog.entries():
            found = self._failures.get((served.name, served.version))
            states[served.name, served.version] = (served.state, found.reason if found else "")
        return [
            IndexEntry(name, version, *states[name, version])
            for name, version in sorted(states, key=lambda key: (key[0], int(key[1])))
        ]

    async def watch(self, every_s: float) -> None:
        """Looks at the repository again and again, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.look()
            except Exception:
                _log.exception("looking at the model repository failed: trying again")

    async def look(self) -> None:
        """Once. What has changed since the last look but one, and not since the last, is acted on:
        a file that is still being copied waits."""
        async with self._turn:
            try:
                listing = await asyncio.to_thread(look, self._repository)
            except ModelLoadError as error:
                self._complain(str(error))  # and all that serves goes on
                return
            self._complain("; ".join(listing.refused.values()))
            settled = self._watch.settled(_stamps(listing), keep=listing.refused)
            if not settled:
                return
            for name in sorted(settled - {ALIASES_FILE} - self._unloaded):
                folder = listing.folders.get(name)
                if folder is not None:
                    self._folders[name] = folder
                    await self._bring(folder)
                    self._tell()
                else:
                    _log.info("model %s has left the repository", name)
                    self._folders.pop(name, None)
                    self._withdraw(name)
            if ALIASES_FILE in settled:
                await self._read_aliases()
        self._changed(self.catalog.statuses())

    def close(self) -> None:
        """Fails what is still in flight with ShuttingDown."""
        for served in (*self.catalog.entries(), *self._draining):
            served.queue.close()
        for task in self._tasks:
            task.cancel()

    async def _load(self, name: str) -> None:
        async with self._turn:
            folder = await asyncio.to_thread(find, self._repository, name)
            self._folders = {**self._folders, name: folder}
            self._unloaded.discard(name)
            errors = await self._bring(folder, again=True)
            self._tell()
        self._changed(self.catalog.statuses())
        if errors:
            raise errors[0]

    async def _bring(self, folder: ModelFolder, *, again: bool = False) -> list[ModelLoadError]:
        """Serves what the folder's settings ask for; returns what failed.

        Versions no longer asked for leave once one that is serves.
        """
        name = folder.name
        try:
            settings = await asyncio.to_thread(read_settings, folder.path)
        except ModelLoadError as error:
            self._note_settings(folder, error)
            return [error]
        self._forget(name, lambda failure: failure.source is None)
        chosen: list[str] = []
        errors: list[ModelLoadError] = []
        candidates = settings.candidates(file.version for file in folder.files)
        for version in candidates:
            if len(chosen) == settings.latest:
                break
            try:
                await self._renew(folder.file(version), settings, again)
            except ModelLoadError as error:
                errors.append(error)
            if self.catalog.get(name, version) is not None:
                chosen.append(version)
        for key in [k for k in self._failures if k[0] == name and k[1] not in candidates]:
            del self._failures[key]
        self.catalog.set_default(name, settings.default_version)
        if settings.default_version is not None and settings.default_version not in chosen:
            _log.warning(
                "default version %s of model %s does not serve: the highest does in its place",
                settings.default_version,
                name,
            )
        if chosen:
            self._retire(e for e in self.catalog.versions(name) if e.version not in chosen)
        return errors

    async def _renew(self, file: ModelFile, settings: ModelSettings, again: bool) -> None:
        """One version, unless what serves was made of the same. Raises: ModelLoadError."""
        key, source = (file.name, file.version), source_of(file, settings)
        before = self.catalog.get(*key)
        if before is not None and before.source == source and before.queue.alive:
            self._failures.pop(key, None)
            return
        failure = self._failures.get(key)
        if failure is not None and failure.source == source and not again:
            raise ModelLoadError(failure.reason)
        self._loading = key
        try:
            loaded = await asyncio.to_thread(self._loader.load, file, settings)
        except ModelLoadError as error:
            raise self._failed(key, source, error) from error
        except Exception as error:  # of a runtime, or no memory: no reason to take others down
            _log.exception("loading %s failed", file.path)
            text = f"{file.path} cannot be loaded: {type(error).__name__}; the log has more"
            raise self._failed(key, source, ModelLoadError(text)) from error
        finally:
            self._loading = None
        self._failures.pop(key, None)
        self.catalog.add(self._loader.serve(loaded))
        if before is not None:
            self._drain(before)
        self._changed(self.catalog.statuses())

    def _retire(self, entries: Iterable[Served]) -> list[asyncio.Task[None]]:
        tasks = []
        for served in list(entries):
            self.catalog.remove(served)
            tasks.append(self._drain(served))
        return tasks

    def _withdraw(self, name: str) -> list[asyncio.Task[None]]:
        """The whole model."""
        self._forget(name, lambda failure: True)
        return self._retire(self.catalog.versions(name))

    def _drain(self, served: Served) -> asyncio.Task[None]:
        """Closes it when its last request is answered. It is no longer in the catalog."""
        self._draining.add(served)
        return self._spawn(self._close(served))

    async def _close(self, served: Served) -> None:
        await served.until_unused()
        served.queue.close()
        self._draining.discard(served)
        await asyncio.to_thread(served.join)
        _log.info("closed %s version %s", served.name, served.version)
        del served  # the last to hold it: now its memory is free
        await asyncio.to_thread(trim_heap)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that goes on when whoever asked for it leaves."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # logged where it arose; whoever asked may have left

    def _failed(self, key: Key, source: object, error: ModelLoadError) -> ModelLoadError:
        """Noted, and to be logged. Paths in the reason are those inside the repository."""
        reason = str(error).replace(f"{self._repository}/", "")
        self._failures[key] = _Failure(reason, source)
        stays = "; its last good file goes on serving" if self.catalog.get(*key) else ""
        self._untold.append(f"model {key[0]} version {key[1]} failed to load: {error}{stays}")
        return error

    def _note_settings(self, folder: ModelFolder, error: ModelLoadError) -> None:
        """Against the version that answers for the model, or else would."""
        served = self.catalog.versions(folder.name)
        version = served[-1].version if served else folder.files[-1].version
        reason = str(error).replace(f"{self._repository}/", "")
        self._failures[folder.name, version] = _Failure(reason, None)
        self._untold.append(f"model {folder.name} keeps its settings: {error}")

    def _forget(self, name: str, which: Callable[[_Failure], bool]) -> None:
        for key, failure in list(self._failures.items()):
            if key[0] == name and which(failure):
                del self._failures[key]

    async def _read_aliases(self) -> None:
        try:
            aliases = await asyncio.to_thread(read_aliases, self._repository)
        except ModelLoadError as error:
            _log.error("the aliases stay as they are: %s", error)
            return
        self.catalog.set_aliases(aliases)
        _log.info("%d aliases", len(aliases))

    def _check_names(self) -> None:
        """Raises: ModelLoadError unless the default model and the aliases mean something."""
        names = ", ".join(self.catalog.names())
        if self._default_model is not None and self._default_model not in self.catalog:
            raise ModelLoadError(
                f"the default model {self._default_model!r} is not in the repository, which "
                f"has {names}"
            )
        for alias, target in self.catalog.astray().items():
            raise ModelLoadError(
                f"{self._repository / ALIASES_FILE}: {alias} means {target}, which does not serve: "
                f"there are {names}"
            )

    def _tell(self) -> None:
        """Logs what failed."""
        for line in self._untold:
            _log.error("%s", line)
        self._untold.clear()

    def _complain(self, what: str) -> None:
        """Once, not at every look."""
        if what and what != self._look_failed:
            _log.error("the repository is left as it was known: %s", what)
        self._look_failed = what


def _stamps(listing: Listing) -> dict[str, object]:
    """What to watch, by model."""
    stamps: dict[str, object] = {name: f.stamps for name, f in listing.folders.items()}
    return {**stamps, ALIASES_FILE: listing.aliases}
