"""tritonclient and the KServe SDK against the real server, in an environment of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.contract.conftest import ADMIN_KEY
from tests.contract.oip import IMAGES, clients_python
from tests.drawing import png, read_png
from tests.serving import ROOT, Server, environment


@pytest.mark.parametrize(
    ("script", "arguments", "ways"),
    [("triton_clients", (ADMIN_KEY,), 18), ("kserve_client", (), 6)],
)
def test_client(
    oip_server: Server, tmp_path: Path, script: str, arguments: tuple[str, ...], ways: int
) -> None:
    """The clients are compared with /segment's answers."""
    python = clients_python()
    for number, image in enumerate(IMAGES):
        (tmp_path / f"{number}.png").write_bytes(png(image))
    replies = [oip_server.rest.post("/segment?version=1", content=png(image)) for image in IMAGES]
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "label_maps.npy", np.stack([read_png(r.content) for r in replies]))
    file = ROOT / "tests" / "acceptance" / f"{script}.py"
    done = subprocess.run(
        [python, file, oip_server.url, oip_server.target, tmp_path, *arguments],
        env=environment(PYTHONWARNINGS="ignore"),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" ok\n") == ways
