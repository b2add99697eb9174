"""The server runs without the training libraries."""

from __future__ import annotations

import subprocess
import sys

from tests.serving import ROOT, environment

UNWANTED = ("torch", "onnx", "onnx_ir", "onnxscript", "tensorboard", "tqdm", "yaml")


def run_python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_server_imports_no_training_library() -> None:
    """Each name is made impossible to import first, so that a lazy import would show too."""
    script = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({UNWANTED!r}))\n"
        "import service.app\n"
        f"print([name for name in {UNWANTED!r} if sys.modules[name] is not None])\n"
    )
    done = run_python(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_serving_loads_no_training_library() -> None:
    script = (
        "import sys, service.app, cli.main, cli.serve\n"
        f"print([name for name in {UNWANTED!r} if name in sys.modules])\n"
    )
    done = run_python(script)
    assert done.stdout.strip() == "[]", done.stderr
