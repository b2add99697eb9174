"""The container's health check finds the server's port as the server does."""

from __future__ import annotations

import os
import runpy
import urllib.request
from typing import Any

import pytest

from tests.unit.repository.pages import ROOT


@pytest.mark.parametrize(
    ("value", "port"),
    [(None, "8000"), ("", "8000"), ("9001", "9001"), ("tcp://10.96.14.7:80", "8000")],
)
def test_the_port(
    value: str | None,
    port: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if value is None:
        monkeypatch.delenv("FCN_HTTP_PORT", raising=False)
    else:
        monkeypatch.setitem(os.environ, "FCN_HTTP_PORT", value)
    asked: list[str] = []

    def refuse(self: Any, url: str, timeout: float) -> Any:
        asked.append(url)
        raise TimeoutError("nobody answers")

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", refuse)
    main = runpy.run_path(str(ROOT / "docker" / "healthcheck.py"))["main"]
    assert main() == 1
    assert asked == [f"http://127.0.0.1:{port}/readyz"]
    assert capsys.readouterr().out == "nobody answers\n"
