"""Reads a model repository: `<root>/<name>/<version>/model.onnx`, version a positive integer.

Only the layout is known here; what is inside a file is the business of `engines`.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from service.changes import Stamp, stamp_of
from service.core.models.model_settings import ALIASES_FILE, NAME, NAME_RULE, SETTINGS_FILE, VERSION
from service.errors import ModelLoadError, UnknownModel, quoted

MODEL_FILE: Final = "model.onnx"
_PREFIX: Final = "model."
"""Starts the names of what belongs to a version: `model.onnx.data`, `model.int8.onnx`."""

Stamps = tuple[tuple[str, Stamp], ...]
"""Name and stamp of files, by name. Files are looked into again only when these change."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Locates one version of one model; `name` is the folder's, whatever the contract says.

    stamp: of the model's file and those beside it that belong to it.
    """

    name: str
    version: str
    path: Path
    stamp: Stamps = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """Lists one model's files, by version number. settings: the stamp of its settings file."""

    path: Path
    files: tuple[ModelFile, ...]
    settings: Stamps = ()

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def stamps(self) -> tuple[object, ...]:
        """Tells one state of the folder from another."""
        return (self.settings, *((file.version, file.stamp) for file in self.files))

    def file(self, version: str) -> ModelFile:
        """Returns one also of a version that is not there: loading it then says so."""
        for file in self.files:
            if file.version == version:
                return file
        return ModelFile(self.name, version, self.path / version / MODEL_FILE)


Listing = tuple[dict[str, ModelFolder], dict[str, str], dict[str, object]]
"""Folders by name; why others are none of a model; and what tells one state of each of them, and of
the aliases' file, from another."""


def look(root: Path) -> Listing:
    """Reads names, sizes and times, opening no file. Raises: ModelLoadError if it cannot."""
    if not root.is_dir():
        raise ModelLoadError(
            f"model repository {str(root)!r} is not a folder: set FCN_MODEL_REPOSITORY to one that "
            f"holds <name>/<version>/{MODEL_FILE}"
        )
    try:
        paths = sorted(root.iterdir())
    except OSError as error:
        raise ModelLoadError(
            f"model repository {str(root)!r} cannot be read: {error.strerror}"
        ) from error
    folders: dict[str, ModelFolder] = {}
    refused: dict[str, str] = {}
    for path in paths:
        try:
            if path.name.startswith(".") or not path.is_dir():
                continue
            folder = _folder(path)
        except OSError as error:
            refused[path.name] = f"model folder {str(path)!r} cannot be read: {error.strerror}"
            continue
        if folder.files and NAME.fullmatch(path.name):
            folders[path.name] = folder
        elif folder.files:
            refused[path.name] = f"model folder {path.name!r}: {NAME_RULE}"
    stamps: dict[str, object] = {name: folder.stamps for name, folder in folders.items()}
    stamps[ALIASES_FILE] = _stamps(root, ALIASES_FILE)
    return folders, refused, stamps


def require(root: Path) -> Listing:
    """Looks where something must be found.

    Raises: ModelLoadError when there is nothing to serve, or a folder that is clearly meant to be
    a model is not one: a server that starts without a model it was given is worse.
    """
    folders, refused, stamps = look(root)
    for reason in refused.values():
        raise ModelLoadError(reason)
    for path in sorted(root.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and path.name not in folders:
            _log.warning("%s holds no version folder (1, 2, ...): ignored", path)
    if not folders:
        raise ModelLoadError(
            f"no model in {str(root)!r}: put one at <name>/<version>/{MODEL_FILE}, where version "
            "is a number such as 1"
        )
    return folders, refused, stamps


def scan(root: Path) -> list[ModelFile]:
    """Lists every version of every model, by name and then by version number.

    Raises: ModelLoadError as `require`, and when a version folder has no model.
    """
    folders, _, _ = require(root)
    files = [file for folder in folders.values() for file in folder.files]
    for file in files:
        check_present(file)
    return files


def check_present(file: ModelFile) -> None:
    """Raises: ModelLoadError."""
    if not file.path.is_file():
        raise ModelLoadError(
            f"{str(file.path)!r} is missing: put the model there or remove the version folder"
        )


def digest_of(path: Path) -> str:
    """Hashes a model file's content, and that of the weights beside it (`model.onnx.data`)."""
    file = path.resolve()
    found = hashlib.sha256()
    for part in sorted(file.parent.glob(f"{file.name}*")):
        with part.open("rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()


def find(root: Path, name: str) -> ModelFolder:
    """Finds one model's folder. Raises: UnknownModel, also for no names, such as `../x`."""
    path = root / name
    if NAME.fullmatch(name) and path.is_dir():
        try:
            folder = _folder(path)
        except OSError as error:
            raise ModelLoadError(
                f"model folder {str(path)!r} cannot be read: {error.strerror}"
            ) from error
        if folder.files:
            return folder
    raise UnknownModel(f"there is no model {quoted(name)} in the repository: put it there first")


def _folder(path: Path) -> ModelFolder:
    """Raises: OSError."""
    versions = sorted((p for p in path.iterdir() if VERSION.fullmatch(p.name)), key=_number)
    files = tuple(
        ModelFile(path.name, version.name, version / MODEL_FILE, _stamps(version, _PREFIX))
        for version in versions
    )
    return ModelFolder(path, files, _stamps(path, SETTINGS_FILE))


def _number(path: Path) -> int:
    return int(path.name)


def _stamps(folder: Path, prefix: str) -> Stamps:
    """Stamps the files in `folder` whose names start so, without one that goes meanwhile."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(prefix) and entry.is_file():
                    found.append((entry.name, stamp_of(entry.stat())))
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return tuple(sorted(found))
