"""A folder of `fcn predict` holds the answers of one network."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from service.core.engines import choice
from tests.drawing import png, street
from tests.tiny_models import contract, write_model


def report(capsys: pytest.CaptureFixture[str], words: list[str]) -> dict[str, Any]:
    assert main(["predict", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_two_networks_are_never_mixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that runs depends on the machine and the settings, not on the repository alone."""
    monkeypatch.setenv("FCN_INTRA_OP_THREADS", "1")
    repository, photos, out = tmp_path / "models", tmp_path / "photos", tmp_path / "out"
    model = write_model(repository)
    photos.mkdir()
    for name in ("a", "b"):
        (photos / f"{name}.png").write_bytes(png(street()))
    words = [str(photos), "--out", str(out), "--local", str(repository)]
    int8 = replace(contract(), precision="int8")

    def quantised(bias: float) -> None:
        write_model(repository / "aside", bias=(bias, 0.0, 0.0), model_contract=int8).rename(
            model.with_name(choice.INT8_FILE)
        )
        shutil.rmtree(repository / "aside")

    def label_maps() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (out / "label_maps").iterdir()}

    def refused() -> str:
        assert main(["predict", *words]) == 1
        return capsys.readouterr().err

    quantised(0.0)
    monkeypatch.setattr(choice, "cpu_flags", lambda: frozenset({"avx512_vnni"}))
    assert report(capsys, words)["done"] == 2
    before = label_maps()
    assert report(capsys, words)["skipped"] == 2
    monkeypatch.setattr(choice, "cpu_flags", frozenset)  # a machine without VNNI
    says = r"out was made by another network, tiny 1 int8 \w+, and this is tiny 1 fp32 \w+: give"
    assert re.search(says, refused())
    monkeypatch.setenv("FCN_PRECISION", "int8")  # the same network again
    assert report(capsys, words)["skipped"] == 2
    quantised(300.0)
    assert re.search(r"another network, tiny 1 int8 \w+, and this is tiny 1 int8 \w+", refused())
    assert label_maps() == before
    assert report(capsys, [*words, "--afresh"])["done"] == 2
