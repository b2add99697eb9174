"""`fcn models` lists what a server over the same folder would serve."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from cli.main import main
from model.contract import Contract
from tests.tiny_models import build, contract, write_file, write_model


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_model(tmp_path, "plain")
    scored = dataclasses.replace(contract("scored"), scores={"mean_iu": 66.5})
    write_model(tmp_path, "scored", 3, model_contract=scored)
    return tmp_path


def test_text(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", str(repository)]) == 0
    plain, scored = capsys.readouterr().out.split("scored version 3\n")
    assert plain.startswith("plain version 1\n")
    assert "classes  3: red, green, blue" in plain
    assert "none (CC0-1.0)" in plain
    assert "scores   none measured" in plain
    assert "scores   mean_iu 66.5" in scored


def test_json(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json", str(repository)]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [(m["name"], m["version"]) for m in models] == [("plain", "1"), ("scored", "3")]
    for listed in models:
        path = Path(listed["path"])
        assert listed["bytes"] == path.stat().st_size
        assert Contract.from_json(json.dumps(listed["contract"])).model_name == listed["name"]


def test_the_settings_name_the_folder(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FCN_MODEL_REPOSITORY", str(repository))
    assert main(["models"]) == 0
    assert "plain version 1" in capsys.readouterr().out


def test_what_could_not_be_served_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
    path = write_file(build(), tmp_path)
    assert main(["models", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert str(path) in error and "contract" in error
    assert len(error.splitlines()) == 1


def test_one_that_cannot_be_served_hides_no_other(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = repository / "broken" / "2" / "model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no model")
    assert main(["models", str(repository)]) == 1
    captured = capsys.readouterr()
    assert "plain version 1" in captured.out and "scored version 3" in captured.out
    assert captured.err.startswith("fcn: ") and str(broken) in captured.err
    assert main(["models", "--json", str(repository)]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [m["name"] for m in report["models"]] == ["plain", "scored"]
    ((failed),) = report["failed"]
    assert (failed["name"], failed["version"]) == ("broken", "2") and failed["error"]
