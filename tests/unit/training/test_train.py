"""The loop: exact resumption, what a run leaves behind, and what changes its result."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.build import build
from tests.unit.training.conftest import SIZES
from tests.unit.training.recipes import PLAIN, MakeConfig, Run, equal
from training import loader
from training.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from training.config import ConfigError
from training.datasets import open_dataset
from training.evaluation.evaluate import evaluate
from training.evaluation.predictors import NetworkPredictor
from training.train import Trainer, train

PER_EPOCH = 3
TOTAL = 6


def log(run_dir: Path) -> list[dict[str, str]]:
    """Read the log without the one column that is not the same every time."""
    with (run_dir / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["images_per_s"]
    return rows


def assert_same_state(a: Checkpoint, b: Checkpoint) -> None:
    assert a.iteration == b.iteration
    for name in ("weights", "ema", "optimizer", "random_states", "val_scores", "epoch_losses"):
        assert equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("stop_after", [PER_EPOCH, 1, 4], ids=["epoch", "early", "mid-epoch"])
def test_resumed_is_the_same_to_the_bit(tmp_path: Path, finished: Run, stop_after: int) -> None:
    """Dropout, augmentation, schedule, moving average and log go on as if never interrupted."""
    first = train(finished.config, tmp_path, stop_after=stop_after)
    assert first.iteration == stop_after
    torch.manual_seed(99)  # as a new process would stand elsewhere
    second = train(finished.config, tmp_path, resume=True)
    assert second.iteration == TOTAL
    assert_same_state(second, finished.checkpoint)
    assert log(tmp_path) == log(finished.folder)
    for name in ("last.pt", "best.pt"):
        assert_same_state(load_checkpoint(tmp_path / name), load_checkpoint(finished.folder / name))
    assert_same_state(load_checkpoint(finished.last), finished.checkpoint)


def test_the_number_of_worker_processes_changes_nothing(
    tmp_path: Path, make_config: MakeConfig, finished: Run
) -> None:
    with_one = train(make_config(data__workers=1), tmp_path, run_log=None)
    assert_same_state(with_one, finished.checkpoint)


@pytest.mark.parametrize("changes", [{"network__dropout": 0.0}, {"seed": 1}], ids=str)
def test_dropout_and_seed_have_an_effect(
    tmp_path: Path, make_config: MakeConfig, begun: Run, changes: dict[str, Any]
) -> None:
    """Else the tests above would say nothing about the random state."""
    other = train(make_config(**changes), tmp_path, stop_after=1, run_log=None)
    assert not equal(other.weights, begun.checkpoint.weights)


def test_what_a_run_leaves_behind(finished: Run) -> None:
    done, folder = finished.checkpoint, finished.folder
    written = json.loads((folder / "config.json").read_text())
    assert written == finished.config.model_dump(mode="json")
    rows = log(folder)
    assert [row["iteration"] for row in rows] == ["3", "6"]
    for row in rows:
        assert 0 <= float(row["val_mean_iu"]) <= 1
        assert float(row["head_lr"]) > float(row["backbone_lr"]) > 0
    assert (folder / "curves.png").is_file()
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"loss", "head_lr", "backbone_lr", "val/mean_iu", "val_iu/sky"} <= scalars
    assert len(events.Tags()["images"]) == SIZES["val"]
    assert done.val_scores is not None
    assert done.best_mean_iu >= done.val_scores["mean_iu"]
    assert set(done.val_scores["class_iu"]) == {"sky", "house", "road", "tree"}
    best = load_checkpoint(folder / "best.pt")
    assert best.best_mean_iu == pytest.approx(max(float(row["val_mean_iu"]) for row in rows), 1e-5)
    assert best.environment["torch"] == torch.__version__
    assert best.environment["device"] and best.environment["python"]


def test_a_run_without_a_log(begun: Run) -> None:
    assert {path.name for path in begun.folder.iterdir()} == {"config.json", "last.pt"}


def test_validation_is_of_the_averaged_weights(finished: Run, streets: Path) -> None:
    """A checkpoint scores what its log line says, on the weights that are exported."""
    done = finished.checkpoint
    assert done.val_scores is not None
    data = open_dataset("folder", streets, "val")
    scores = evaluate(NetworkPredictor(done.build_network()), data, progress=False).scores()
    assert scores.mean_iu == done.val_scores["mean_iu"]


def test_measured_norms_change_the_average_and_no_step(
    tmp_path: Path, make_config: MakeConfig, finished: Run
) -> None:
    """And they are what the averaged network's norms are given on training crops."""
    done = train(make_config(schedule__norm_images=4), tmp_path, run_log=None)
    plain = finished.checkpoint
    assert all(torch.equal(value, plain.weights[name]) for name, value in done.weights.items())
    assert done.ema is not None and plain.ema is not None
    changed = {
        name.rpartition(".")[2]
        for name, value in done.ema.items()
        if not torch.equal(value, plain.ema[name])
    }
    assert changed >= {"running_mean", "running_var"}
    assert "weight" not in changed and "bias" not in changed
    before = {name: value.clone() for name, value in done.ema.items()}
    config = make_config(schedule__norm_images=4)
    again = Trainer(config, tmp_path, resume=True, run_log=None)
    again._measure_norms()
    assert again.learner.average is not None
    for name, value in again.learner.average.state.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, before[name])


def test_norms_are_measured_on_crops_that_are_not_mixed(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start, of ImageNet's weights, and of the average; the steps mix."""

    def refuse(*_: object) -> None:
        raise AssertionError("mixed")

    monkeypatch.setattr(loader, "mix_classes", refuse)
    path = tmp_path / "imagenet.npz"
    np.savez(path, **folded_weights(make_config()))
    config = make_config(
        augment__mix=1.0, init__imagenet=str(path), schedule__norm_images=4, data__workers=0
    )
    trainer = Trainer(config, tmp_path / "run", resume=False, run_log=None)
    trainer._measure_norms()
    with pytest.raises(AssertionError, match="mixed"):
        trainer.run(stop_after=1)


def test_norms_to_measure_that_are_not_there(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="alexnet has no norms to measure"):
        make_config(**PLAIN, schedule__norm_images=4)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"optimizer__kind": "sgd", "optimizer__head_lr": 1e-2},
        {"schedule__ema_decay": 0.0},
        {"loss__class_weight_offset": None},
        {"loss__dice": 0.0},
        {"loss": {"reduction": "sum"}, "optimizer__head_lr": 1e-6, "optimizer__backbone_lr": 0.0},
        {"network__variant": "32s"},
        {"network__variant": "16s", "network__upsampling": "learned"},
        {"network__skip_channels": 8, "network__fc6_channels": 0},
        {"schedule__batch_size": 100},
        {"augment": {"crop_height": None, "crop_width": None, "jitter_px": 8}},
        {"schedule__val_every_epochs": 5},
    ],
    ids=str,
)
def test_other_recipes(tmp_path: Path, make_config: MakeConfig, changes: dict[str, Any]) -> None:
    """One epoch of each, interrupted and resumed; the weights move and stay finite."""
    config = make_config(**{"schedule__epochs": 1, **changes})
    first = train(config, tmp_path, stop_after=1, run_log=None)
    done = train(config, tmp_path, resume=True, run_log=None)
    assert done.iteration == (1 if config.schedule.batch_size == 100 else PER_EPOCH)
    assert (done.ema is None) == (config.schedule.ema_decay == 0)
    if done.iteration > 1:
        assert not equal(first.weights, done.weights)
    assert all(value.isfinite().all() for value in done.weights.values())
    assert done.val_scores is not None  # the last epoch is always validated


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_sampling_takes_part_in_a_run_and_its_resumption(
    tmp_path: Path, make_config: MakeConfig, reduction: str
) -> None:
    """Another loss than without it, and the same cells again after an interruption."""
    summed = {"loss__reduction": reduction, "loss__dice": 0.0, "optimizer__head_lr": 1e-6}
    sampled = make_config(**summed, loss__sample=0.5, loss__sample_cell_px=8)
    straight = train(sampled, tmp_path / "straight", stop_after=2, run_log=None)
    train(sampled, tmp_path / "parts", stop_after=1, run_log=None)
    resumed = train(sampled, tmp_path / "parts", resume=True, stop_after=1, run_log=None)
    assert_same_state(straight, resumed)
    whole = train(make_config(**summed), tmp_path / "whole", stop_after=2, run_log=None)
    assert straight.epoch_losses != whole.epoch_losses
    if reduction == "sum":  # all start at ln 4 a pixel, so the sums tell the share of the pixels
        assert 0.3 < straight.epoch_losses[0] / whole.epoch_losses[0] < 0.7


def test_a_run_of_so_many_iterations(tmp_path: Path, make_config: MakeConfig) -> None:
    """4 of them are an epoch and a third: the end is validated, logged and saved like an epoch's,
    and resumption is exact here too."""
    config = make_config(schedule__epochs=None, schedule__iterations=4)
    straight = train(config, tmp_path / "straight")
    assert straight.iteration == 4
    assert [row["iteration"] for row in log(tmp_path / "straight")] == ["3", "4"]
    assert log(tmp_path / "straight")[-1]["val_mean_iu"]
    train(config, tmp_path / "parts", stop_after=3)
    assert_same_state(straight, train(config, tmp_path / "parts", resume=True))
    assert log(tmp_path / "parts") == log(tmp_path / "straight")


def test_a_mask_is_learned_from(tmp_path: Path, make_config: MakeConfig, streets: Path) -> None:
    """And validated on, which this split without objects would not tell."""
    classes = tmp_path / "classes.yaml"
    classes.write_text((streets / "classes.yaml").read_text().replace("sky", "background"))
    whole, part = (
        train(
            make_config(data__classes=str(classes), data__mask=mask),
            tmp_path / mask,
            stop_after=1,
            run_log=None,
        )
        for mask in ("all", "shape")
    )
    assert not equal(whole.weights, part.weights)


def test_nothing_to_resume(tmp_path: Path, make_config: MakeConfig) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*last\.pt"):
        train(make_config(), tmp_path, resume=True)


def test_a_finished_run_stays_as_it_is(tmp_path: Path, finished: Run) -> None:
    folder = finished.copy(tmp_path / "run")
    again = train(finished.config, folder, resume=True)
    assert_same_state(finished.checkpoint, again)
    assert log(folder) == log(finished.folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optimizer__head_lr": 1e-4}, r"optimizer\.head_lr \(was 0\.001, is 0\.0001\)"),
        ({"schedule__batch_size": 3}, r"schedule\.batch_size \(was 2, is 3\)"),
        ({"schedule__ema_decay": 0.0}, r"schedule\.ema_decay"),
        ({"network__variant": "32s"}, r"network\.variant \(was 8s, is 32s\)"),
        ({"augment__flip": False, "seed": 2}, r"augment\.flip .*, seed "),
    ],
)
def test_resume_refuses_another_recipe(
    begun: Run, make_config: MakeConfig, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=f"begun with another recipe: {named}"):
        train(make_config(**changes), begun.folder, resume=True)


def test_resume_refuses_another_class_list(
    tmp_path: Path, begun: Run, make_config: MakeConfig, streets: Path
) -> None:
    other = tmp_path / "classes.yaml"
    other.write_text((streets / "classes.yaml").read_text().replace("house", "barn"))
    with pytest.raises(CheckpointError, match="another class list"):
        train(make_config(data__classes=str(other)), begun.folder, resume=True)


def test_resume_allows_what_changes_no_result(
    tmp_path: Path, begun: Run, make_config: MakeConfig
) -> None:
    folder = begun.copy(tmp_path / "run")
    moved = make_config(data__workers=1, schedule__val_every_epochs=2, name="renamed")
    done = train(moved, folder, resume=True, stop_after=1, run_log=None)
    assert done.iteration == begun.checkpoint.iteration + 1


def test_imagenet_weights_start_the_backbone(tmp_path: Path, make_config: MakeConfig) -> None:
    """From a file with every layer, folded as the importer wants it."""
    path = tmp_path / "imagenet.npz"
    np.savez(path, **folded_weights(make_config()))
    config = make_config(init__imagenet=str(path), init__calibration_images=4)
    trainer = Trainer(config, tmp_path / "run", resume=False, run_log=None)
    weight = trainer.network.state_dict()["backbone.pw3.conv.weight"]
    with np.load(path) as arrays:
        assert np.array_equal(weight.squeeze().numpy(), arrays["pw3/w"][:, :, 0, 0])
    norm = trainer.network.state_dict()["backbone.pw3.norm.running_mean"]
    assert norm.abs().sum() > 0  # measured on the training images


def folded_weights(config: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"network": "mobilenet_v1", "preprocessing": "tensorflow"}
    for name, value in build(config.network, 4).backbone.named_parameters():
        layer, _, kind = name.partition(".")
        if kind == "conv.weight" and layer != "fc6":
            out, into, height, width = value.shape
            arrays[f"{layer}/w"] = rng.normal(0, 0.3, (out, into, height, width)).astype(np.float32)
            arrays[f"{layer}/b"] = rng.normal(0, 0.1, out).astype(np.float32)
    return arrays


@pytest.mark.parametrize("content", [None, b"junk", b"PK\x03\x04"])
def test_unusable_imagenet_weights(
    tmp_path: Path, make_config: MakeConfig, content: bytes | None
) -> None:
    path = tmp_path / "imagenet.npz"
    if content is not None:
        path.write_bytes(content)
    complaint = "there is no file" if content is None else "cannot use"
    with pytest.raises(ConfigError, match=rf"init\.imagenet: {complaint} .*imagenet\.npz"):
        train(make_config(init__imagenet=str(path)), tmp_path / "run")


def test_imagenet_weights_of_another_network(tmp_path: Path, make_config: MakeConfig) -> None:
    path = tmp_path / "imagenet.npz"
    weights: dict[str, Any] = {"network": "vgg16", "preprocessing": "caffe"}
    np.savez(path, **weights)
    with pytest.raises(ConfigError, match=r"init\.imagenet: cannot use .*is for vgg16"):
        train(make_config(init__imagenet=str(path)), tmp_path / "run")
