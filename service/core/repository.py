"""The model repository: `<root>/<name>/<version>/model.onnx`, version a positive integer.

Only the layout is known here; what is inside a file is `runtime`'s business.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from service.errors import ModelLoadError

MODEL_FILE = "model.onnx"
# Names become part of URLs and metric labels; the same rule as the contract's model_name.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One version of one model; `name` is the folder's, whatever the contract inside says."""

    name: str
    version: str
    path: Path


def scan(root: Path) -> list[ModelFile]:
    """Every version of every model, by name and then by version number.

    Raises: ModelLoadError when there is nothing to serve, or a folder that is clearly meant to be
    a model is not one: a server that starts without a model it was given is worse.
    """
    if not root.is_dir():
        raise ModelLoadError(
            f"model repository {str(root)!r} is not a folder: set FCN_MODEL_REPOSITORY to one that "
            f"holds <name>/<version>/{MODEL_FILE}"
        )
    try:
        found = [file for folder in sorted(root.iterdir()) for file in _versions(folder)]
    except OSError as error:
        raise ModelLoadError(
            f"model repository {str(root)!r} cannot be read: {error.strerror}"
        ) from error
    if not found:
        raise ModelLoadError(
            f"no model in {str(root)!r}: put one at <name>/<version>/{MODEL_FILE}, where version "
            "is a number such as 1"
        )
    return found


def _versions(folder: Path) -> list[ModelFile]:
    if folder.name.startswith(".") or not folder.is_dir():
        return []
    numbers = sorted(
        (entry.name for entry in folder.iterdir() if _VERSION.fullmatch(entry.name)), key=int
    )
    if not numbers:
        _log.warning("%s holds no version folder (1, 2, ...): ignored", folder)
        return []
    if not _NAME.fullmatch(folder.name):
        raise ModelLoadError(
            f"model folder {folder.name!r}: use letters, digits, '.', '_' and '-', starting with a "
            "letter or digit"
        )
    files = [ModelFile(folder.name, number, folder / number / MODEL_FILE) for number in numbers]
    for file in files:
        if not file.path.is_file():
            raise ModelLoadError(
                f"{str(file.path)!r} is missing: put the model there or remove the version folder"
            )
    return files
