from __future__ import annotations

import logging
from pathlib import Path

import pytest

from service.core.models.repository import ModelFile, scan
from service.errors import ModelLoadError


def put(root: Path, name: str, version: str) -> Path:
    path = root / name / version / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    return path


def test_versions_are_found_by_number_and_not_by_text(tmp_path: Path) -> None:
    paths = [put(tmp_path, "b", v) for v in ("2", "10", "1")]
    put(tmp_path, "a", "3")
    found = scan(tmp_path)
    assert [(f.name, f.version) for f in found] == [("a", "3"), ("b", "1"), ("b", "2"), ("b", "10")]
    assert found[3] == ModelFile("b", "10", paths[1])


def test_what_is_no_model_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "model", "1")
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / "model" / "README.md").write_text("a card")
    (tmp_path / "model" / "old").mkdir()
    (tmp_path / "model" / "0").mkdir()
    (tmp_path / ".git" / "1").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    with caplog.at_level(logging.WARNING):
        assert [f.name for f in scan(tmp_path)] == ["model"]
    assert "notes holds no version folder" in caplog.text


@pytest.mark.parametrize("make", ["missing", "a file"])
def test_a_repository_that_is_no_folder_is_refused(tmp_path: Path, make: str) -> None:
    root = tmp_path / "repository"
    if make == "a file":
        root.write_text("")
    with pytest.raises(ModelLoadError, match="is not a folder: set FCN_MODEL_REPOSITORY"):
        scan(root)


def test_an_empty_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"no model in .*<name>/<version>/model.onnx"):
        scan(tmp_path)


def test_a_version_folder_without_its_model_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "good", "1")
    (tmp_path / "bad" / "1").mkdir(parents=True)
    with pytest.raises(ModelLoadError, match=r"bad/1/model.onnx' is missing"):
        scan(tmp_path)


def test_a_name_that_cannot_stand_in_a_url_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "my model", "1")
    with pytest.raises(ModelLoadError, match="'my model': use letters"):
        scan(tmp_path)


def test_every_refusal_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad" / "1").mkdir(parents=True)
    for root in (tmp_path, tmp_path / "missing", tmp_path / "bad"):
        with pytest.raises(ModelLoadError) as caught:
            scan(root)
        assert "\n" not in str(caught.value)
