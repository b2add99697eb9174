"""The rule for words of CONTRIBUTING.md: docstrings begin with a sentence; and files are short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.unit.repository.pages import ROOT

PACKAGES = ("bench", "cli", "fcn_client", "model", "service", "training")
BARE = {"Of", "As", "On", "In", "Until", "Without", "By", "What", "Which", "Whether"}
"""Words that a first line may not begin with: they hang on the name that stands above them."""
MAX_LINES = 400


def modules(*folders: str) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "_pb2" not in path.name:
                yield path


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each: of the module, its classes, functions and documented values."""
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield statement.lineno, text


def hanging(source: str) -> list[tuple[int, str]]:
    return [
        (line, text.splitlines()[0])
        for line, text in docstrings(source)
        if (text.split() or [""])[0].strip(",:;`") in BARE
    ]


def test_docstrings_begin_with_a_sentence() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in modules(*PACKAGES)
        for line, text in hanging(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_a_hanging_docstring_is_noticed() -> None:
    source = '"""Sizes."""\ndef f():\n    """Of a\n    size."""\n\nx = 1\n"""In pixels."""\n'
    assert sorted(hanging(source)) == [(3, "Of a"), (7, "In pixels.")]


def test_an_image_is_not_a_picture() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in modules(*PACKAGES)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if "picture" in line.lower()
    ]
    assert found == []


def test_files_are_short() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in modules(*PACKAGES, "tests")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert long == {}
