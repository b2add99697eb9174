"""Advice in messages names what exists: commands, their flags, the flags' choices, and settings."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.main import build_parser, command_names
from model.build import BACKBONES
from model.weights.head import SCORES
from service.settings import Settings, environment_name, removed_names
from tests.unit.repository.pages import ROOT

_COMMAND = re.compile(r"(?<![\w./-])fcn ([a-z][a-z-]*[a-z])")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
_CHOICE = re.compile(r"\b(?:say|give|use|choose|with) (--[a-z-]+)[ =]([a-z0-9][\w-]*)")
_SETTING = re.compile(r"\bFCN_[A-Z0-9_]*[A-Z0-9]\b")
_OTHERS = {
    *("--format", "--nproc-per-node", "--porcelain", "--query-gpu", "--short"),
    "--untracked-files",
}
"""Flags of torchrun, git and nvidia-smi."""
_NOT_OURS = {ROOT / "training" / "datasets" / "drawn.py"}
"""Modules that are commands of their own."""


def parsers(
    parser: argparse.ArgumentParser, name: str = ""
) -> Iterator[tuple[str, argparse.Action]]:
    """Every option of every command, by the command's name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub_name, sub in action.choices.items():
                yield from parsers(sub, name or sub_name)
        for flag in action.option_strings:
            if flag.startswith("--"):
                yield name, action


def options() -> dict[str, dict[str, argparse.Action]]:
    found: dict[str, dict[str, argparse.Action]] = {name: {} for name in command_names()}
    for name, action in parsers(build_parser(command_names())):
        for command in [name] if name else found:  # the frame's own go with each
            found[command] |= dict.fromkeys(action.option_strings, action)
    return found


OPTIONS = options()
SETTINGS = {environment_name(name) for name in Settings.model_fields} | set(removed_names())


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The file's strings but its docstrings; what is put into one is `{}`."""
    tree = ast.parse(path.read_text())
    bare = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)
    }  # docstrings, of attributes too
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            parts = (p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
            yield node.lineno, "".join(str(part) for part in parts)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or id(node) in bare | inside:
            continue
        if isinstance(node.value, str):
            yield node.lineno, node.value


def wrong(text: str, own: str | None) -> Iterator[str]:
    """Lists what the text names and there is not. own: the command whose file it is in."""
    named = _COMMAND.findall(text)
    for name in named:
        if name not in OPTIONS:
            yield f"there is no fcn {name}"
    commands = [name for name in named if name in OPTIONS] + ([own] if own else [])
    for flag in _FLAG.findall(text):
        if flag not in _OTHERS and not any(flag in OPTIONS[c] for c in commands or OPTIONS):
            yield f"{flag} is no option of {' or '.join(commands) or 'any command'}"
    for flag, value in _CHOICE.findall(text):
        there = [OPTIONS[c][flag].choices for c in commands or OPTIONS if flag in OPTIONS[c]]
        if there and not any(choices is None or value in choices for choices in there):
            yield f"{flag} has no choice {value}"
    for name in _SETTING.findall(text):
        if name not in SETTINGS and not any(setting.startswith(name) for setting in SETTINGS):
            yield f"{name} is no setting"


FILES = sorted(
    path
    for folder in ("cli", "service", "model", "training", "fcn_client")
    for path in (ROOT / folder).rglob("*.py")
    if "stubs" not in path.parts and path not in _NOT_OURS
)


def test_messages_advise_what_there_is() -> None:
    found = []
    for path in FILES:
        name = path.stem.replace("_", "-")
        own = name if path.parent.name == "cli" and name in OPTIONS else None
        for line, text in texts(path):
            found += [f"{path.relative_to(ROOT)}:{line}: {said}" for said in wrong(text, own)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "own", "said"),
    [
        ("make it with fcn exprot", None, "there is no fcn exprot"),
        ("export it with --logit", None, "--logit is no option of any command"),
        ("`fcn models --local`", None, "--local is no option of models"),
        ("--local is for a server", "models", "--local is no option of models"),
        ("give --write", "predict", None),
        ("give --head 4s", "import-weights", "--head has no choice 4s"),
        ("give --head 8s", "import-weights", None),
        ("set FCN_HTTP_PROT", None, "FCN_HTTP_PROT is no setting"),
        ("the fcn-serve wheel", None, None),
    ],
)
def test_it_would_be_seen(text: str, own: str | None, said: str | None) -> None:
    assert list(wrong(text, own)) == ([said] if said else [])


def test_import_weights_takes_whatever_it_may_advise() -> None:
    """Its messages choose by the file, out of what the backbones and heads name."""
    taken = OPTIONS["import-weights"]
    preprocessing = {name for spec in BACKBONES.values() for name in spec.preprocessing}
    assert preprocessing <= set(taken["--preprocessing"].choices or ())
    assert set(SCORES) <= set(taken["--head"].choices or ())
