"""Training, evaluation and export of networks that see depth, and of one with two heads, on
miniatures of NYUDv2 and SIFT Flow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import model.build
from cli.main import main
from tests.unit.training import miniatures, nyu
from training.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from training.config import ConfigError, TrainConfig, parse_config
from training.datasets import open_dataset
from training.evaluation.evaluate import evaluate
from training.evaluation.predictors import NetworkPredictor
from training.losses import LossConfig, cross_entropy, heads_loss
from training.train import train

DATASETS = {
    "rgb": "nyudv2",
    "rgbd": "nyudv2_rgbd",
    "hha": "nyudv2_hha",
    "rgb-hha": "nyudv2_rgb_hha",
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rooms")
    nyu.folders(root, {"train": ["5001", "5002"], "val": ["5003"], "test": ["5004"]})
    return root


@pytest.fixture(scope="module")
def outdoors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("outdoors")
    miniatures.siftflow(root, {"trainval": ["coast_1", "street_2"], "test": ["forest_3"]})
    return root


def recipe(dataset: str, root: Path, **network: Any) -> dict[str, Any]:
    """Heavy learning, at a rate that moves weights within two steps."""
    splits = {"train_split": "trainval", "val_split": "test"}
    return {
        "name": "scenes",
        "network": {
            "backbone": "vgg16",
            "variant": "16s",
            "fc6_channels": 8,
            "width": 1 / 32,
            **network,
        },
        "data": {
            "dataset": dataset,
            "root": str(root),
            "workers": 0,
            "allow_absent": True,
            **splits,
        },
        "augment": {"crop_height": 6, "crop_width": 8},
        "loss": {"reduction": "sum"},
        "optimizer": {"kind": "sgd", "momentum": 0.99, "backbone_lr": 1e-6, "head_lr": 1e-6},
        "schedule": {"epochs": 2, "batch_size": 1, "ema_decay": 0.0, "val_every_epochs": 1},
        "precision": "fp32",
        "threads": 1,
    }


FAST = {"kind": "sgd", "momentum": 0.9, "backbone_lr": 1e-4, "head_lr": 1e-5}
"""Moves the first layer within three steps."""


def rooms_config(rooms: Path, modality: str, **changes: Any) -> TrainConfig:
    raw = recipe(DATASETS[modality], rooms, modality=modality, preprocessing="nyudv2")
    return parse_config(raw | changes, "test recipe")


def outdoors_config(outdoors: Path, **changes: Any) -> TrainConfig:
    raw = recipe("siftflow_both", outdoors, preprocessing="siftflow")
    return parse_config(raw | changes, "test recipe")


def same_weights(a: Checkpoint, b: Checkpoint) -> bool:
    return a.weights.keys() == b.weights.keys() and all(
        torch.equal(value, b.weights[name]) for name, value in a.weights.items()
    )


@pytest.mark.parametrize("modality", list(DATASETS))
def test_train_resume_evaluate(
    rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], modality: str
) -> None:
    """Interrupted after an epoch and resumed, it ends where the uninterrupted run ends."""
    config = rooms_config(rooms, modality)
    whole = train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop_after=3, run_log=None)
    done = train(config, tmp_path / "parts", resume=True, run_log=None)
    assert done.iteration == whole.iteration == 6
    assert same_weights(done, whole)
    saved = load_checkpoint(tmp_path / "parts/last.pt")
    assert saved.dataset.modality == saved.network.modality == modality
    data = open_dataset(DATASETS[modality], rooms, "test")
    scores = evaluate(NetworkPredictor(saved.build_network()), data, progress=False).scores()
    capsys.readouterr()
    words = ["--data-root", str(rooms), "--dataset", DATASETS[modality], "--json"]
    assert main(["evaluate", str(tmp_path / "parts/last.pt"), *words]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["pixel_accuracy"] == scores.pixel_accuracy
    assert "heads" not in printed


def test_depth_is_learned_from(rooms: Path, tmp_path: Path) -> None:
    config = rooms_config(rooms, "rgbd", optimizer=FAST)
    torch.manual_seed(config.seed)
    begun = model.build.build(config.network, 40).state_dict()["backbone.conv1_1_bgrd.weight"]
    done = train(config, tmp_path, run_log=None).weights["backbone.conv1_1_bgrd.weight"]
    assert (done[:, 3] != begun[:, 3]).any()


def test_recomputed_streams_learn_the_same(rooms: Path, tmp_path: Path) -> None:
    config = rooms_config(rooms, "rgb-hha", optimizer=FAST)
    kept = train(config, tmp_path / "kept", stop_after=3, run_log=None)
    config = rooms_config(rooms, "rgb-hha", optimizer=FAST, activation_checkpointing=True)
    again = train(config, tmp_path / "again", stop_after=3, run_log=None)
    for name, value in kept.weights.items():
        assert torch.allclose(value, again.weights[name], rtol=1e-5, atol=1e-8), name


def test_late_fusion_starts_from_the_nets_trained_alone(rooms: Path, tmp_path: Path) -> None:
    for modality in ("rgb", "hha"):
        train(rooms_config(rooms, modality), tmp_path / modality, stop_after=2, run_log=None)
    init = {
        "checkpoint": str(tmp_path / "rgb/last.pt"),
        "hha_checkpoint": str(tmp_path / "hha/last.pt"),
    }
    rates = {"kind": "sgd", "backbone_lr": 0, "head_lr": 1e-30}
    config = rooms_config(rooms, "rgb-hha", init=init, optimizer=rates)
    fused = train(config, tmp_path / "both", stop_after=1, run_log=None).build_network()
    sample = open_dataset("nyudv2_rgb_hha", rooms, "test")[0].image
    images = torch.from_numpy(sample.copy()).permute(2, 0, 1)[None].float()
    alone = [load_checkpoint(tmp_path / m / "last.pt").build_network() for m in ("rgb", "hha")]
    with torch.inference_mode():
        wanted = (alone[0](images[:, :3]) + alone[1](images[:, 3:])) / 2
        assert torch.allclose(fused(images), wanted, rtol=1e-4, atol=1e-6)
        assert wanted.abs().max() > 0
    config = rooms_config(rooms, "rgb-hha", init={**init, "hha_checkpoint": init["checkpoint"]})
    with pytest.raises(ConfigError, match=r"another net: network\.modality \(there rgb, here hha"):
        train(config, tmp_path / "wrong", run_log=None)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"init": {"hha_checkpoint": "hha.pt"}}, "hha_checkpoint wants checkpoint too"),
        (
            {"init": {"checkpoint": "rgb.pt", "hha_checkpoint": "hha.pt"}},
            r"hha_checkpoint is for network\.modality=rgb-hha, not rgbd",
        ),
    ],
)
def test_recipes_that_make_no_sense(rooms: Path, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        rooms_config(rooms, "rgbd", **changes)


def test_data_of_another_modality(rooms: Path, tmp_path: Path) -> None:
    raw = recipe("nyudv2", rooms, modality="rgbd")
    with pytest.raises(ConfigError, match=r"network\.modality is rgbd, but nyudv2 gives rgb: ch"):
        train(parse_config(raw, "test recipe"), tmp_path, run_log=None)


def test_another_modality_is_not_scored(
    rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(rooms_config(rooms, "hha"), tmp_path, stop_after=1, run_log=None)
    words = ["--data-root", str(rooms), "--dataset", "nyudv2"]
    assert main(["evaluate", str(tmp_path / "last.pt"), *words]) != 0
    assert "takes hha images, but the data set gives rgb" in capsys.readouterr().err


@pytest.mark.parametrize("modality", ["rgbd", "hha", "rgb-hha"])
def test_export_refuses_what_no_server_is_sent(
    rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], modality: str
) -> None:
    train(rooms_config(rooms, modality), tmp_path / "run", stop_after=1, run_log=None)
    words = ["--repository", str(tmp_path / "repository")]
    assert main(["export", str(tmp_path / "run/last.pt"), *words]) != 0
    said = capsys.readouterr().err
    assert f"takes {modality} images, and a server is sent RGB ones: it cannot be exp" in said
    assert not (tmp_path / "repository").exists()


def test_two_heads(outdoors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = outdoors_config(outdoors)
    whole = train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop_after=3, run_log=None)
    assert same_weights(train(config, tmp_path / "parts", resume=True, run_log=None), whole)
    assert whole.val_scores is not None
    assert 0 <= whole.val_scores["heads"]["geo"]["pixel_accuracy"] <= 1
    capsys.readouterr()
    words = ["--data-root", str(outdoors), "--dataset", "siftflow_both", "--absent", "exclude_gt"]
    assert main(["evaluate", str(tmp_path / "whole/last.pt"), *words]) == 0
    page = capsys.readouterr().out
    assert "pixel accuracy of geo" in page
    assert main(["evaluate", str(tmp_path / "whole/last.pt"), *words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    wanted = scored_by_hand(whole, outdoors)
    assert printed["pixel_accuracy"] == pytest.approx(wanted[0])
    assert printed["heads"]["geo"]["pixel_accuracy"] == pytest.approx(wanted[1])
    assert len(printed["class_iu"]) == len(printed["heads"]["sem"]["class_iu"]) == 33
    assert len(printed["heads"]["geo"]["class_iu"]) == 3


def scored_by_hand(checkpoint: Checkpoint, root: Path) -> tuple[float, float]:
    """Pixel accuracy of either labelling on test."""
    image, target = open_dataset("siftflow_both", root, "test")[0]
    with torch.inference_mode():
        logits = checkpoint.build_network()(torch.from_numpy(image).permute(2, 0, 1)[None].float())
    found = []
    for index, part in enumerate((logits[0, :33], logits[0, 33:])):
        labelled = target[..., index] != 255
        found.append(float((part.argmax(0).numpy() == target[..., index])[labelled].mean()))
    return found[0], found[1]


def test_both_heads_and_the_backbone_between_them_learn(outdoors: Path, tmp_path: Path) -> None:
    config = outdoors_config(outdoors, optimizer=FAST)
    torch.manual_seed(config.seed)
    begun = model.build.build(config.network, {"sem": 33, "geo": 3}).state_dict()
    done = train(config, tmp_path, stop_after=3, run_log=None).weights
    moved = {name for name, value in done.items() if not torch.equal(value, begun[name])}
    scores = {f"score_{at}_{head}.weight" for at in ("fr", "pool4") for head in ("sem", "geo")}
    assert scores <= moved
    assert "backbone.conv1_1.weight" in moved


def test_the_losses_weigh_the_same() -> None:
    logits = torch.randn(2, 5, 4, 6)
    target = torch.stack([torch.randint(0, n, (2, 4, 6)) for n in (3, 2)], dim=-1)
    config, normaliser = LossConfig(reduction="sum"), torch.ones(())
    loss = heads_loss(logits, target, {"sem": 3, "geo": 2}, config, None, normaliser)
    parts = [
        cross_entropy(logits[:, :3], target[..., 0], None, "sum"),
        cross_entropy(logits[:, 3:], target[..., 1], None, "sum"),
    ]
    assert torch.allclose(loss, parts[0] + parts[1])


@pytest.mark.parametrize(
    "loss", [{"reduction": "mean"}, {"reduction": "mean", "class_weight_offset": 1.1}]
)
def test_two_heads_learn_from_the_summed_loss(
    outdoors: Path, tmp_path: Path, loss: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"siftflow_both has several labellings.*reduction=sum"):
        train(outdoors_config(outdoors, loss=loss), tmp_path, run_log=None)


def test_one_labelling_is_not_scored_as_two(
    outdoors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(outdoors_config(outdoors), tmp_path, stop_after=1, run_log=None)
    words = ["--data-root", str(outdoors), "--dataset", "siftflow"]
    assert main(["evaluate", str(tmp_path / "last.pt"), *words]) != 0
    said = capsys.readouterr().err
    assert "has the labellings sem and geo, the data set one labelling" in said


def test_another_number_of_heads_is_not_resumed(outdoors: Path, tmp_path: Path) -> None:
    train(outdoors_config(outdoors), tmp_path, stop_after=1, run_log=None)
    raw = recipe("siftflow", outdoors, preprocessing="siftflow")
    with pytest.raises(CheckpointError, match="was trained on another class list"):
        train(parse_config(raw, "test recipe"), tmp_path, resume=True, run_log=None)


def test_the_semantic_head_is_served(outdoors: Path, tmp_path: Path) -> None:
    from training.evaluation.onnx_predictor import OnnxPredictor

    raw = recipe("siftflow_both", outdoors, preprocessing="siftflow", variant="32s")
    done = train(parse_config(raw, "test recipe"), tmp_path / "run", stop_after=2, run_log=None)
    words = ["--repository", str(tmp_path / "repository"), "--logits"]
    assert main(["export", str(tmp_path / "run/last.pt"), *words]) == 0
    served = OnnxPredictor(tmp_path / "repository/scenes/1/model.onnx")
    assert len(served.contract.classes) == 33
    assert served.contract.classes[0].name == "awning"
    image = open_dataset("siftflow_both", outdoors, "test")[0].image
    labels = NetworkPredictor(done.build_network())(image)
    assert labels.shape == (miniatures.HEIGHT, miniatures.WIDTH, 2)
    assert (served(image) == labels[..., 0]).mean() > 0.99
    card = (tmp_path / "repository/scenes/README.md").read_text()
    recipe_of_card = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    assert recipe_of_card["data"]["dataset"] == "siftflow_both"
