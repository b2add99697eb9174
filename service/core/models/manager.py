"""Keeps the versions that serve: loaded, warmed up, replaced and unloaded while requests go on.

A new version takes requests once it has answered an image of its own; the one before it takes no
more from then on, answers those it has, and is closed. One that cannot be loaded changes nothing
but its own state. One change at a time: two loads at once would take twice the memory.

All state is touched on the event loop only; threads read files and load networks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, Final

from service.changes import SettledChanges, due_again, poll
from service.core.engines.memory import trim_heap
from service.core.models.loader import Loader, source_of
from service.core.models.model_settings import (
    ALIASES_FILE,
    ModelSettings,
    read_aliases,
    read_settings,
)
from service.core.models.registry import LoadedModel, ModelRegistry
from service.core.models.repository import ModelFile, ModelFolder, find, look, require
from service.core.models.watchdog import TICK_S, Watchdog
from service.core.types import IndexEntry, ModelState, ModelStatus
from service.errors import ModelLoadError, ModelNotReady, UnknownModel, quoted

Key = tuple[str, str]
"""Name and version."""
Failure = tuple[str, object]
"""Why a version does not serve, and its `LoadedModel.source`; None if it is not the model file but
model.toml that is wrong."""

UNLOAD_S: Final = 60.0
"""Longest time that an unload waits for the requests that the model has."""
JOIN_S: Final = 5.0
"""Longest wait for runs that were told to end."""
_log = logging.getLogger(__name__)


class ModelManager:
    """Changes what is served: `start`, then `load`, `unload` and `watch`, then `close`."""

    def __init__(
        self,
        repository: Path,
        loader: Loader,
        *,
        default_model: str | None,
        changed: Callable[[list[ModelStatus], list[IndexEntry]], None],
    ) -> None:
        """changed: told of the models that serve, and of all versions, whenever they are others."""
        self.registry = ModelRegistry(default_model)
        self._repository = repository
        self._loader = loader
        self._changed = changed
        self._one_change = asyncio.Lock()
        self._changes: SettledChanges[object] = SettledChanges({})
        self._folders: dict[str, ModelFolder] = {}
        self._failures: dict[Key, Failure] = {}
        self._looks: dict[str, int] = {}
        self._loading: Key | None = None
        self._unloaded: set[str] = set()
        self._draining: dict[LoadedModel, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._unlogged: list[str] = []
        self._repository_error = ""
        self.watchdog = Watchdog(
            loader.config.stuck_after_s, observer=loader.observer, clock=loader.clock
        )

    @property
    def busy(self) -> bool:
        """Tells whether a thread is loading a network."""
        return self._loader.busy

    async def start(self) -> None:
        """Serves every model. Raises: ModelLoadError, also when one has no version that loads."""
        async with self._one_change:
            self._folders, _, stamps = await asyncio.to_thread(require, self._repository)
            self._changes = SettledChanges(stamps)
            self.registry.set_aliases(await asyncio.to_thread(read_aliases, self._repository))
            for name, folder in self._folders.items():
                errors = await self._reconcile(folder)
                if errors and name not in self.registry:
                    raise errors[0]  # which says it all
                self._log_failures()
            self.registry.check_names(self._repository)
        self._tell()
        self._spawn(self._guard())

    async def load(self, name: str) -> None:
        """Reads a model's folder again and serves what is new, changed, or failed before.

        Raises: UnknownModel, or ModelLoadError when any of its versions failed; those that served
        go on.
        """
        # A caller who leaves does not stop it half way.
        await asyncio.shield(self._spawn(self._load(name)))

    async def unload(self, name: str) -> None:
        """Returns once all its requests are answered and it is closed; until `load` it stays so.

        Raises: UnknownModel; ModelNotReady when that does not come within `UNLOAD_S`.
        """
        try:
            async with asyncio.timeout(UNLOAD_S):
                await self._unload(name)
        except TimeoutError:
            raise ModelNotReady(
                f"model {quoted(name)} is still being unloaded after {UNLOAD_S:g} s, or another is "
                "being loaded: ask again"
            ) from None

    async def _unload(self, name: str) -> None:
        async with self._one_change:
            known = {key[0] for key in self._failures} | {model.name for model in self._draining}
            if not self.registry.versions(name) and name not in known:
                raise UnknownModel(
                    f"there is no model {quoted(name)} to unload: loaded are "
                    f"{', '.join(self.registry.names()) or 'none'}"
                )
            self._unloaded.add(name)
            self._unload_model(name)
            # Those that were replaced and still answer, too: their memory is the model's.
            tasks = [task for model, task in self._draining.items() if model.name == name]
        self._tell()
        if tasks:  # not gathered: a caller who leaves does not stop them
            await asyncio.wait(tasks)

    def index(self) -> list[IndexEntry]:
        """Lists every version known, by name and number."""
        states: dict[Key, tuple[ModelState, str]] = {}
        for folder in self._folders.values():
            for file in folder.files:
                states[folder.name, file.version] = (ModelState.UNLOADED, "")
        for model in self._draining:
            states[model.name, model.version] = (ModelState.DRAINING, "")
        for key, (reason, _) in self._failures.items():
            states[key] = (ModelState.FAILED, reason)
        if self._loading is not None:
            states[self._loading] = (ModelState.LOADING, "")
        for model in self.registry.models():
            reason, _ = self._failures.get((model.name, model.version), ("", None))
            states[model.name, model.version] = (model.state, reason)
        return [
            IndexEntry(name, version, *states[name, version])
            for name, version in sorted(states, key=lambda key: (key[0], int(key[1])))
        ]

    async def watch(self, every_s: float) -> None:
        """Looks at the repository again and again, until cancelled."""
        await poll(self.look, every_s, "the model repository")

    async def look(self) -> None:
        """Acts on changes that have been stable for one polling interval."""
        async with self._one_change:
            try:
                folders, refused, stamps = await asyncio.to_thread(look, self._repository)
            except ModelLoadError as error:
                self._log_repository_error(str(error))  # and all that serves goes on
                return
            self._log_repository_error("; ".join(refused.values()))
            settled = self._changes.settled(stamps, keep=refused)
            again = due_again(self._looks, {name for name, _ in self._failures})
            if not settled and not again:
                return
            for name in sorted((settled | again) - {ALIASES_FILE} - self._unloaded):
                folder = folders.get(name)
                if folder is not None:
                    self._folders[name] = folder
                    await self._reconcile(folder, retry_failed=name in again)
                    self._log_failures()
                else:
                    _log.info("model %s has left the repository", name)
                    self._folders.pop(name, None)
                    self._unload_model(name)
            if ALIASES_FILE in settled:
                await self._read_aliases()
        self._tell()

    def close(self) -> None:
        """Fails what is still in flight with ShuttingDown."""
        for model in (*self.registry.models(), *self._draining):
            model.close()
        for task in self._tasks:
            task.cancel()

    async def _guard(self) -> None:
        """Has the watchdog look, and replaces what it has given up."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                for model in self.watchdog.look([*self.registry.models(), *self._draining]):
                    self._spawn(self._replace(model))
            except Exception:
                _log.exception("the watchdog failed: looking again")

    async def _replace(self, lost: LoadedModel) -> None:
        async with self._one_change:
            folder = self._folders.get(lost.name)
            if folder is not None and self.registry.get(lost.name, lost.version) is lost:
                await self._reconcile(folder, retry_failed=True)
                self._log_failures()
        self._tell()

    async def _load(self, name: str) -> None:
        async with self._one_change:
            folder = await asyncio.to_thread(find, self._repository, name)
            self._folders = {**self._folders, name: folder}
            self._unloaded.discard(name)
            errors = await self._reconcile(folder, retry_failed=True)
            self._log_failures()
        self._tell()
        if errors:
            raise errors[0]

    async def _reconcile(
        self, folder: ModelFolder, *, retry_failed: bool = False
    ) -> list[ModelLoadError]:
        """Serves what the folder's settings ask for; returns what failed.

        Versions no longer asked for leave once one that is serves.
        """
        name = folder.name
        try:
            settings = await asyncio.to_thread(read_settings, folder.path)
        except ModelLoadError as error:
            self._note_settings_failure(folder, error)
            return [error]
        self._forget_failures(name, lambda version, failure: failure[1] is None)
        chosen: list[str] = []
        errors: list[ModelLoadError] = []
        candidates = settings.candidates(file.version for file in folder.files)
        for version in candidates:
            if len(chosen) == settings.latest:
                break
            try:
                await self._load_version(folder.file(version), settings, retry_failed)
            except ModelLoadError as error:
                errors.append(error)
            if self.registry.get(name, version) is not None:
                chosen.append(version)
        self._forget_failures(name, lambda version, failure: version not in candidates)
        self.registry.configure(name, settings)
        if settings.default_version is not None and settings.default_version not in chosen:
            _log.warning(
                "default version %s of model %s does not serve: the highest does in its place",
                settings.default_version,
                name,
            )
        if chosen:
            self._unload_versions(
                model for model in self.registry.versions(name) if model.version not in chosen
            )
        return errors

    async def _load_version(
        self, file: ModelFile, settings: ModelSettings, retry_failed: bool
    ) -> None:
        """Loads one version, unless what serves was made of the same. Raises: ModelLoadError."""
        key, source = (file.name, file.version), source_of(file, settings)
        before = self.registry.get(*key)
        if before is not None and before.source == source and before.state is ModelState.READY:
            self._failures.pop(key, None)
            return
        failure = self._failures.get(key)
        if failure is not None and failure[1] == source and not retry_failed:
            raise ModelLoadError(failure[0])
        self._loading = key
        try:
            model = await asyncio.to_thread(self._loader.load, file, settings)
            self._loader.start(model)
        except ModelLoadError as error:
            raise self._failed(key, source, error) from error
        except Exception as error:  # of a runtime, or no memory: no reason to take others down
            _log.exception("loading %s failed", file.path)
            text = f"{file.path} cannot be loaded: {type(error).__name__}; the log has more"
            raise self._failed(key, source, ModelLoadError(text)) from error
        finally:
            self._loading = None
        self._failures.pop(key, None)
        self.registry.add(model)
        if before is not None:
            self._drain(before)
        self._tell()

    def _tell(self) -> None:
        self._changed(self.registry.statuses(), self.index())

    def _unload_versions(self, models: Iterable[LoadedModel]) -> None:
        for model in list(models):
            self.registry.remove(model)
            self._drain(model)

    def _unload_model(self, name: str) -> None:
        self._forget_failures(name, lambda version, failure: True)
        self._unload_versions(self.registry.versions(name))

    def _drain(self, model: LoadedModel) -> None:
        """Closes it when its last request is answered. It is no longer in the registry."""
        self._draining[model] = self._spawn(self._close(model))

    async def _close(self, model: LoadedModel) -> None:
        await model.until_unused()
        model.close()
        self._draining.pop(model, None)
        name, version, last = model.name, model.version, [model]
        del model  # only `last` holds it, and the thread takes it out of there
        if await asyncio.to_thread(_free, last):
            _log.info("closed %s version %s", name, version)
        else:
            _log.error("%s version %s is closed, and one of its runs goes on", name, version)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Makes a task that goes on when whoever asked for it leaves."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget_task)
        return task

    def _forget_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # logged where it arose; whoever asked may have left

    def _failed(self, key: Key, source: object, error: ModelLoadError) -> ModelLoadError:
        """Notes a failure, to be logged. Paths in the reason are those inside the repository."""
        reason = str(error).replace(f"{self._repository}/", "")
        known = self._failures.get(key) == (reason, source)  # and was logged
        self._failures[key] = (reason, source)
        stays = "; its last good file goes on serving" if self.registry.get(*key) else ""
        if not known:
            self._unlogged.append(f"model {key[0]} version {key[1]} failed to load: {error}{stays}")
        return error

    def _note_settings_failure(self, folder: ModelFolder, error: ModelLoadError) -> None:
        """Notes it against the version that answers for the model, or else would."""
        serving = self.registry.versions(folder.name)
        version = serving[-1].version if serving else folder.files[-1].version
        reason = str(error).replace(f"{self._repository}/", "")
        self._failures[folder.name, version] = (reason, None)
        self._unlogged.append(f"model {folder.name} keeps its settings: {error}")

    def _forget_failures(self, name: str, which: Callable[[str, Failure], bool]) -> None:
        for key, failure in list(self._failures.items()):
            if key[0] == name and which(key[1], failure):
                del self._failures[key]

    async def _read_aliases(self) -> None:
        try:
            aliases = await asyncio.to_thread(read_aliases, self._repository)
        except ModelLoadError as error:
            if isinstance(error.__cause__, OSError):
                self._changes.again(ALIASES_FILE)
            _log.error("the aliases stay as they are: %s", error)
            return
        self.registry.set_aliases(aliases)
        _log.info("%d aliases", len(aliases))

    def _log_failures(self) -> None:
        for line in self._unlogged:
            _log.error("%s", line)
        self._unlogged.clear()

    def _log_repository_error(self, error: str) -> None:
        """Logs it once, not at every look."""
        if error and error != self._repository_error:
            _log.error("the repository is left as it was known: %s", error)
        self._repository_error = error


def _free(last: list[LoadedModel]) -> bool:
    """Waits for a closed model's threads, and returns its memory to the system; tells whether they
    have ended."""
    ended = last.pop().join(JOIN_S)
    trim_heap()
    return ended
