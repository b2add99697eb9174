"""Text files as editors on Windows write them: a byte order mark first, lines that end in CR LF."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli._api_key import read_api_key
from cli.tune import MARK, check_writable
from service.api.keys import Keys
from service.core.models.model_settings import read_aliases, read_settings
from service.settings import load_settings
from training.config_file import read_config
from training.datasets.folder import load_info
from training.datasets.format import read_ids
from training.datasets.pascal_context import _names
from training.publish import _METRICS, _read_scores

KEY = "k" * 20
CLASS_LIST = "name: own\nlicence: CC0-1.0\nclasses:\n- {name: road, color: [1, 2, 3]}\n"
SCORES = {"split": "val", "class_iu": {}, **dict.fromkeys(_METRICS, 0.5)}


def _caller(path: Path) -> str:
    keys = Keys(path, admin_key=None, rejected=lambda reason: None)
    return keys.admit([KEY]).name


def _rewritten(path: Path) -> str:
    """Lets `fcn tune` write over a settings file that it wrote and somebody's editor saved."""
    check_writable(path)
    return "ours"


@pytest.mark.parametrize(
    ("name", "text", "read", "expected"),
    [
        ("model.toml", "max_batch = 2\n", lambda p: read_settings(p.parent).max_batch, 2),
        ("aliases.toml", 'best = "tiny"\n', lambda p: list(read_aliases(p.parent)), ["best"]),
        (
            "tuned.env",
            "FCN_INSTANCES=3\nFCN_LOG_LEVEL=debug\n",
            lambda p: load_settings({"settings_file": str(p)}).instances,
            3,
        ),
        (
            "admin.txt",
            f"{KEY}\n",
            lambda p: load_settings({"admin_key_file": str(p)}).read_admin_key(),
            KEY,
        ),
        ("keys.txt", f"ann {KEY}\n", _caller, "ann"),
        ("key.txt", f"{KEY}\n", read_api_key, KEY),
        ("old.env", f"{MARK}\nFCN_INSTANCES=3\n", _rewritten, "ours"),
        ("recipe.yaml", "name: own\n", read_config, {"name": "own"}),
        ("classes.yaml", CLASS_LIST, lambda p: load_info(p).classes[0].name, "road"),
        ("val.txt", "a\nb\n", read_ids, ["a", "b"]),
        ("labels.txt", "1: sky\n2: sea\n", _names, {1: "sky", 2: "sea"}),
        ("scores.json", json.dumps(SCORES, indent=2), _read_scores, SCORES),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value[:12] else "",
)
def test_a_mark_and_crlf_change_nothing(
    name: str, text: str, read: Callable[[Path], Any], expected: object, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert read(path) == expected
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read(path) == expected


def test_scores_that_powershell_redirected(tmp_path: Path) -> None:
    """`fcn evaluate --json > scores.json` is UTF-16 there."""
    path = tmp_path / "scores.json"
    path.write_bytes(json.dumps(SCORES).encode("utf-16"))
    assert _read_scores(path) == SCORES
