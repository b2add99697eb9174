"""The rule for words of CONTRIBUTING.md: docstrings begin with a verb; and files are short."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.repository.pages import ROOT

PACKAGES = ("bench", "cli", "fcn_client", "model", "service", "training")
Rule = Callable[[str], list[tuple[int, str]]]
"""Gives the lines of a module's source that break it."""
BARE = {"Of", "As", "On", "In", "Until", "Without", "By", "What", "Which", "Whether"}
"""Words that a first line may not begin with: they hang on the name that stands above them."""
IMPERATIVES = """
    Add Answer Apply Ask Average Begin Build Change Check Choose Collect Compare Compute Connect
    Convert Copy Count Crop Decode Describe Do Draw End Evaluate Exchange Fill Find Flatten Fold
    Follow Format Give Guess Hide Join Keep Leave List Load Locate Look Make Map Measure Merge
    Multiply Name Open Pad Pair Pick Predict Print Put Read Refuse Rename Replace Resample Resize
    Restore Return Run Save Say Score Set Show Space Split Start Stop Sum Take Tell Test Train Turn
    Use Wait Walk Warn Write Yield
"""
"""Verbs that a docstring may give as an order; in the third person it may have any."""
PLURALS = """
    Bodies Cells Channels Classes Images Inputs Its Layers Nodes Outputs Parts Pixels Poolings
    Ranges Rows Scores Stubs Tensors This Weights Whoever Words
"""
"""Words that end as a verb in the third person does."""
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


def verbless(source: str) -> list[tuple[int, str]]:
    """List the first lines of functions and classes that do not begin with a verb.

    An error says in a sentence of its own what happened, and `__init__` what its parameters are.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node) or ""
        bases = [ast.unparse(base) for base in getattr(node, "bases", ())]
        exempt = node.name == "__init__" or any(b.endswith(("Error", "Exception")) for b in bases)
        if text and not exempt and not is_verb(text.split()[0].strip(",:;.")):
            found.append((node.body[0].lineno, text.splitlines()[0]))
    return found


def is_verb(word: str) -> bool:
    third_person = word[:1].isupper() and word.isalpha() and word.endswith("s")
    return word in IMPERATIVES.split() or third_person and word not in PLURALS.split()


@pytest.mark.parametrize(
    ("rule", "folders"), [(hanging, (*PACKAGES, "tests")), (verbless, PACKAGES)]
)
def test_docstrings_can_be_read_aloud(rule: Rule, folders: tuple[str, ...]) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in modules(*folders)
        for line, text in rule(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_a_docstring_without_a_verb_is_noticed() -> None:
    source = '''class A:
    """Pixels of it."""
    def __init__(self): "sides: in pixels."
    def f(self): "[N,C] of it."
    def g(self): "Gives it."
    def h(self): "Give it."
class B(ValueError): "There is none."
'''
    assert verbless(source) == [(2, "Pixels of it."), (4, "[N,C] of it.")]


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
