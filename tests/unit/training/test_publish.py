"""A checkpoint becomes a model in a repository, with a contract and a card that tell its story."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cli.main import main
from model.export.parity import ExportError, ParityReport
from service.core.engines.onnx_runtime import open_onnx_runtime
from service.core.engines.warm_up import warm_up
from tests.unit.training.recipes import Run
from training import publish as publish_module
from training.checkpoint import Checkpoint
from training.datasets import open_dataset
from training.publish import PublishError, make_contract, model_card, publish, shared_config
from training.teacher import load_teacher

MEASURED = {
    "split": "test",
    "pixel_accuracy": 0.9,
    "mean_accuracy": 0.8,
    "mean_iu": 0.7,
    "frequency_weighted_iu": 0.85,
    "class_iu": {"sky": 0.95, "house": 0.6, "road": 0.91, "tree": None},
}


@pytest.fixture
def run_dir(finished: Run) -> Path:
    return finished.folder


@pytest.fixture
def checkpoint(finished: Run) -> Checkpoint:
    return finished.checkpoint


def write_scores(folder: Path, **changes: Any) -> Path:
    path = folder / "scores.json"
    path.write_text(json.dumps(MEASURED | changes))
    return path


@pytest.mark.parametrize(("difference", "classes"), [(None, 1), (None, 2), (0.0, 1)])
def test_fcn_export_says_when_labels_prove_little(
    difference: float | None,
    classes: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = ParityReport(((1, 32, 32),), difference, 1.0, classes)
    monkeypatch.setattr(publish_module, "publish", lambda *_, **__: (Path("model.onnx"), report))
    assert main(["export", "last.pt"]) == 0
    warned = "all of one class" in capsys.readouterr().out
    assert warned == (difference is None and classes == 1)


def test_fcn_export_makes_a_model_that_the_server_loads_and_that_teaches(
    run_dir: Path, tmp_path: Path, streets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "models"
    scores = write_scores(tmp_path)
    arguments = ["export", str(run_dir / "last.pt"), "--repository", str(repository)]
    assert main([*arguments, "--scores", str(scores), "--logits"]) == 0
    assert "labels agree on" in capsys.readouterr().out
    path = repository / "streets" / "1" / "model.onnx"
    session = open_onnx_runtime(path, provider="cpu", threads=1)
    assert session.contract.class_names == ("sky", "house", "road", "tree")
    assert session.contract.scores["test_mean_iu"] == 0.7
    assert session.contract.outputs.logits == "logits"
    warm_up(session, [(41, 33)])
    info = open_dataset("folder", streets, "train").info
    teachers = [load_teacher(path, info) for path in (run_dir / "last.pt", path)]
    images = torch.rand(1, 3, 48, 64) * 255
    one, other = (teacher(images) for teacher in teachers)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert not any(p.requires_grad for teacher in teachers for p in teacher.parameters())
    assert not any(teacher.training for teacher in teachers)


def test_an_exported_file_is_exported_anew_with_logits(run_dir: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    scores = write_scores(tmp_path)
    plain, _ = publish(run_dir / "last.pt", repository, scores=scores)
    card = (repository / "streets" / "README.md").read_text()
    assert main(["export", str(plain), "--repository", str(repository), "--logits"]) == 0
    assert (repository / "streets" / "README.md").read_text() == card
    before, after = (
        open_onnx_runtime(
            repository / "streets" / version / "model.onnx", provider="cpu", threads=1
        )
        for version in ("1", "2")
    )
    assert before.contract.outputs.logits is None
    assert after.contract == replace(
        before.contract, outputs=replace(before.contract.outputs, logits="logits")
    )
    images = np.random.default_rng(0).integers(0, 256, (1, 48, 64, 3)).astype(np.uint8)
    labels, logits = after.instances[0].run_with_logits(images)
    assert np.array_equal(labels, before.instances[0].run(images))
    assert np.array_equal(labels[0], logits[0].argmax(axis=0))
    with pytest.raises(PublishError, match="an exported file keeps its own"):
        publish(plain, repository, scores=scores)
    with pytest.raises(PublishError, match="--overwrite"):
        publish(plain, repository, version=1)
    plain.write_bytes(b"no network")
    assert main(["export", str(plain), "--repository", str(repository)]) == 1


def test_contract_tells_the_story(checkpoint: Checkpoint) -> None:
    contract = make_contract(checkpoint, checkpoint.build_network(), "streets", measured=MEASURED)
    assert contract.architecture == "fcn8s-mobilenet_v1_0.125"
    assert contract.git_revision == checkpoint.git_revision
    assert contract.training_data.licence == "CC0-1.0"
    assert contract.scores["test_frequency_weighted_iu"] == 0.85
    assert checkpoint.val_scores is not None
    assert contract.scores["val_mean_iu"] == pytest.approx(
        checkpoint.val_scores["mean_iu"], abs=1e-6
    )


def test_card_has_scores_licence_and_recipe(checkpoint: Checkpoint) -> None:
    contract = make_contract(checkpoint, checkpoint.build_network(), "streets", measured=MEASURED)
    card = model_card(checkpoint, contract, MEASURED)
    assert "# streets" in card
    assert "**CC0-1.0**" in card
    assert "| metric | val | test |" in card
    assert "| 70.00 |" in card
    assert "| sky |" in card
    assert "| - |" in card, "a class without a pixel has no score"
    assert "epochs: 2" in card


def test_scores_on_what_was_learned_from_are_left_out(checkpoint: Checkpoint) -> None:
    data = {**checkpoint.config["data"], "train_split": "train+val"}
    own = replace(checkpoint, config={**checkpoint.config, "data": data})
    contract = make_contract(own, own.build_network(), "streets", measured=MEASURED)
    assert "test_mean_iu" in contract.scores and "val_mean_iu" not in contract.scores
    assert "| metric | test |" in model_card(own, contract, MEASURED)


def test_scores_measured_on_val_take_the_place_of_those_of_training(
    checkpoint: Checkpoint,
) -> None:
    measured = MEASURED | {"split": "val"}
    contract = make_contract(checkpoint, checkpoint.build_network(), "streets", measured=measured)
    assert contract.scores["val_mean_iu"] == 0.7
    card = model_card(checkpoint, contract, measured)
    assert "| metric | val |" in card
    assert "--split val --json" in card


def test_card_names_no_folder_of_this_machine(checkpoint: Checkpoint, streets: Path) -> None:
    config = json.loads(json.dumps(checkpoint.config))
    config["init"]["imagenet"] = "/somewhere/weights.npz"
    shared = shared_config(config)
    assert "root" not in shared["data"]
    assert shared["init"]["imagenet"] == "weights.npz"
    assert config["data"]["root"] == str(streets), "the checkpoint's own is kept"


@pytest.mark.usefixtures("quick_export")
def test_versions_count_up_and_are_not_replaced_by_accident(run_dir: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    for wanted in ("1", "2"):
        path, _ = publish(run_dir / "last.pt", repository)
        assert path.parent.name == wanted
    path, _ = publish(run_dir / "last.pt", repository, name="other", version=7)
    assert path == repository / "other" / "7" / "model.onnx"
    with pytest.raises(PublishError, match="--overwrite"):
        publish(run_dir / "last.pt", repository, version=2)
    publish(run_dir / "last.pt", repository, version=2, overwrite=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "cannot read the scores"),
        ("[1]", "is not what `fcn evaluate --json` prints"),
        ('{"split": "test"}', "no 'pixel_accuracy'"),
    ],
)
def test_scores_of_another_kind(run_dir: Path, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(PublishError, match=message):
        publish(run_dir / "last.pt", tmp_path / "models", scores=path)
    assert not (tmp_path / "models").exists()


def test_missing_scores_file(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="cannot read the scores"):
        publish(run_dir / "last.pt", tmp_path / "models", scores=tmp_path / "none.json")


def test_a_failed_export_leaves_no_card(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> ParityReport:
        raise ExportError("they disagree")

    monkeypatch.setattr(publish_module, "export", fail)
    with pytest.raises(ExportError):
        publish(run_dir / "last.pt", tmp_path / "models")
    assert not (tmp_path / "models").exists()
