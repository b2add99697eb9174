"""The server runs without the training libraries."""

from __future__ import annotations

import subprocess
import sys

from tests.serving import ROOT, environment

UNWANTED = ("torch", "onnx", "onnx_ir", "onnxscript", "tensorboard", "tqdm", "yaml")


def test_the_server_imports_no_training_library() -> None:
    """Each name is made impossible to import first, so that a lazy import would show too."""
    script = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({UNWANTED!r}))\n"
        "import service.app, cli.main, cli.serve\n"
        f"print([name for name in {UNWANTED!r} if sys.modules[name] is not None])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
