"""The import rules of docs/architecture.md: kept, and noticed when they are broken."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.repository.pages import ROOT

CORE = "Inside the core"
VIOLATIONS = (
    ("service/core/images/decode.py", "import onnxruntime", "onnxruntime and openvino only in"),
    ("service/core/images/header.py", "import openvino", "onnxruntime and openvino only in"),
    ("service/core/models/loader.py", "import PIL.Image", "Pillow and simplejpeg only in"),
    ("service/core/segmenter.py", "import simplejpeg", "Pillow and simplejpeg only in"),
    ("service/telemetry.py", "import fastapi", "fastapi only in api"),
    ("service/telemetry.py", "import grpc", "grpc only in api"),
    ("service/core/types.py", "import fastapi", "The core and the errors know neither"),
    ("service/core/images/header.py", "import model.build", "The service knows of model/ only"),
    ("service/api/http/routes.py", "import training", "The packages import one way"),
    ("service/core/engines/onnx_runtime.py", "import torch", "import no training library"),
    ("fcn_client/rest.py", "import service.errors", "The client imports nothing else"),
    ("fcn_client/predict/job.py", "import model.contract", "The client imports nothing else"),
    ("service/telemetry.py", "import fcn_client", "The server does not import the client"),
    ("model/contract.py", "import torch", "import no training library"),
    ("model/contract.py", "import training", "The packages import one way"),
    ("training/__init__.py", "import service.errors", "Training knows of the service only how"),
    ("training/loader.py", "import service.core.images.decode", "Training knows of the service"),
    ("training/__init__.py", "import cli", "The packages import one way"),
    ("service/core/images/decode.py", "import service.core.outputs", CORE),
    ("service/core/outputs/png.py", "import service.core.segmenter", CORE),
    ("service/core/outputs/rle.py", "import service.core.models.loader", CORE),
    ("service/core/types.py", "import service.core.images.header", CORE),
    ("service/core/batching/policy.py", "import service.core.models", CORE),
    ("service/core/engines/warm_up.py", "import service.core.batching", CORE),
    (
        "service/api/grpc/server.py",
        "import service.core.images.decode",
        "The api knows of the core",
    ),
    ("service/api/oip/grpc.py", "import service.api.http.parameters", "gRPC knows nothing of HTTP"),
    ("service/api/http/routes.py", "import service.settings", "Only app reads the settings"),
    ("service/core/segmenter.py", "import service.api", "Inside the service"),
)
"""Module to break, the statement that breaks it, and the name of the rule or a part of it."""

PACKAGES = ("cli", "fcn_client", "model", "service", "training")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter over the packages in `folder`, with the rules there."""
    script = "from importlinter.cli import lint_imports_command as lint; lint()"
    return subprocess.run(
        [sys.executable, "-c", script, "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project's code and rules, to break."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignore)
    return tmp_path


def test_rules_are_kept(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_each_broken_rule_is_noticed(copy: Path) -> None:
    """All of them broken at once: a run of import-linter is slow, and reports every rule."""
    for module, statement, _ in VIOLATIONS:
        with (copy / module).open("a") as file:
            file.write(f"\n{statement}\n")
    done = lint(copy)
    assert done.returncode == 1, done.stdout
    unnoticed = [
        violation for violation in VIOLATIONS if not reported(*violation, report=done.stdout)
    ]
    assert unnoticed == [], done.stdout


def reported(module: str, statement: str, rule: str, *, report: str) -> bool:
    """Says whether the report's section on `rule` has a line with the importer and the imported."""
    # A heading underlined with dashes, then the section; the text before the first is [0].
    parts = re.split(r"^(.+)\n-{5,}$", report.partition("Broken contracts")[2], flags=re.M)
    section = next(
        (body for name, body in zip(parts[1::2], parts[2::2], strict=True) if rule in name), ""
    )
    importer = module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    imported = statement.removeprefix("import ").partition(".Image")[0]
    return f"{importer} -> {imported}" in section


def test_a_new_core_module_must_be_placed(copy: Path) -> None:
    (copy / "service/core/newcomer.py").write_text("")
    done = lint(copy)
    assert done.returncode == 1
    assert "newcomer" in done.stdout
