"""32s -> 16s -> 8s -> 4s: what a stage takes from the one before it, and what it refuses."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from model.fcn import FCN
from model.upsample import bilinear_kernel
from tests.exports import MOBILE, exported
from tests.unit.training.recipes import changed, raw_recipe
from training.checkpoint import load_checkpoint
from training.config import ConfigError, TrainConfig, parse_config
from training.initialise import Taken
from training.train import Trainer, train

NET = {
    "backbone": "vgg16",
    "variant": "32s",
    "fc6_channels": 8,
    "padding": "pad100",
    "width": 1 / 32,
}


Stage = Callable[..., TrainConfig]


def stage_config(
    streets: Path, checkpoint: Path | None = None, *, init: Any = None, **network: Any
) -> TrainConfig:
    changes = {
        "network": NET | network,
        "init": init or {"checkpoint": str(checkpoint) if checkpoint else None},
        "schedule__epochs": 1,
    }
    return parse_config(changed(raw_recipe(streets), changes), "test recipe")


@pytest.fixture
def stage(streets: Path) -> Stage:
    """A recipe whose network differs from `NET` as told."""
    return functools.partial(stage_config, streets)


@pytest.fixture(scope="module")
def parent(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FCN-32s after a few steps at a rate that lets it answer something; nobody may change it."""
    config = stage_config(streets)
    rates = {"head_lr": 0.05, "backbone_lr": 1e-3}
    config = config.model_copy(update={"optimizer": config.optimizer.model_copy(update=rates)})
    folder = tmp_path_factory.mktemp("parent") / "32s"
    train(config, folder, run_log=None)
    return folder / "last.pt"


def begun(config: TrainConfig, run_dir: Path) -> FCN:
    """Its network as the run would start."""
    trainer = Trainer(config, run_dir, resume=False, run_log=None)
    return trainer.network.cpu().eval()


def upsampled(scores: torch.Tensor, factors: Sequence[int]) -> torch.Tensor:
    """[N,4,h,w], by one bilinear transposed convolution after the other, uncropped."""
    for factor in factors:
        kernel = bilinear_kernel(2 * factor).expand(4, 1, -1, -1)
        scores = functional.conv_transpose2d(scores, kernel, stride=factor, groups=4)
    return scores


@torch.inference_mode()
def test_the_next_stage_starts_with_its_parents_prediction(
    tmp_path: Path, parent: Path, stage: Stage
) -> None:
    """Up to the upsampling path: the same coarse scores, 2-fold and 16-fold instead of 32-fold,
    cut at the authors' offsets, and nothing from the skips."""
    before = load_checkpoint(parent).build_network()
    images = torch.rand(1, 3, 70, 90) * 255
    answer = before(images)
    span = float(answer.max() - answer.min())
    assert span > 0.1  # it does answer something
    coarse = before.get_submodule("score_fr")(before.backbone(images)[32])
    any_scores = torch.rand(64, 4, 7, 8, generator=torch.Generator().manual_seed(0))
    at_once = upsampled(any_scores, (32,))[:, :, 64:192, 64:192]  # of whole cells
    for variant, factors, offset in (
        ("16s", (2, 16), 27),
        ("8s", (2, 2, 8), 31),
        ("4s", (2, 2, 2, 4), 33),
    ):
        after = begun(stage(parent, variant=variant), tmp_path / variant)
        window = upsampled(coarse, factors)[:, :, offset : offset + 70, offset : offset + 90]
        torch.testing.assert_close(after(images), window, rtol=1e-4, atol=1e-4 * span)
        # Another path gives other values between the cells, but in the same place: a pixel beside
        # it in any direction, the parent's path fits less.
        in_stages = upsampled(any_scores, factors)
        fits = {}
        for down, right in itertools.product((-1, 0, 1), repeat=2):
            top, left = offset + 64 - 19 + down, offset + 64 - 19 + right
            beside = in_stages[:, :, top : top + 128, left : left + 128]
            fits[down, right] = float((beside - at_once).abs().mean())
        assert min(fits, key=lambda shift: fits[shift]) == (0, 0)
        assert 0 < fits[0, 0] < 0.05 * span


def test_what_was_taken_is_said(tmp_path: Path, parent: Path, stage: Stage, capsys: Any) -> None:
    train(stage(parent, variant="16s"), tmp_path / "16s", run_log=None)
    assert (
        f"{parent}: 16 layers copied (backbone.conv1_1 to score_fr); new: score_pool4"
        in capsys.readouterr().out
    )
    train(
        stage(tmp_path / "16s/last.pt", variant="8s"), tmp_path / "8s", stop_after=1, run_log=None
    )
    assert "17 layers copied (backbone.conv1_1 to score_pool4); new: score_pool3" in (
        capsys.readouterr().out
    )
    begun(stage(tmp_path / "8s/last.pt", variant="4s"), tmp_path / "4s")
    assert "18 layers copied (backbone.conv1_1 to score_pool3); new: score_pool2" in (
        capsys.readouterr().out
    )
    begun(stage(tmp_path / "8s/last.pt"), tmp_path / "back")
    assert "16 layers copied" in (said := capsys.readouterr().out)
    assert "not wanted: score_pool4, score_pool3" in said


def test_the_averaged_weights_are_taken(tmp_path: Path, parent: Path, stage: Stage) -> None:
    saved = load_checkpoint(parent)
    assert saved.ema is not None
    assert not torch.equal(saved.ema["score_fr.weight"], saved.weights["score_fr.weight"])
    after = begun(stage(parent, variant="16s"), tmp_path / "16s").state_dict()
    assert torch.equal(after["score_fr.weight"], saved.ema["score_fr.weight"])


def test_upsampling_that_begins_to_learn_starts_bilinear(
    tmp_path: Path, parent: Path, stage: Stage
) -> None:
    train(stage(parent, variant="16s"), tmp_path / "16s", stop_after=1, run_log=None)
    fixed = tmp_path / "16s/last.pt"
    after = begun(stage(fixed, variant="8s", upsampling="learned"), tmp_path / "8s")
    for layer in (after.upscore2, after.upscore_pool4):
        assert torch.equal(layer.weight[1, 1], bilinear_kernel(4))
        assert not layer.weight[0, 1].any()


def test_other_classes_leave_the_scores_new(
    tmp_path: Path, parent: Path, stage: Stage, streets: Path, capsys: Any
) -> None:
    """There are as many, but not the same: the scores of a house say nothing about a barn."""
    classes = tmp_path / "classes.yaml"
    classes.write_text((streets / "classes.yaml").read_text().replace("house", "barn"))
    config = stage(parent)
    data = config.data.model_copy(update={"classes": classes})
    after = begun(config.model_copy(update={"data": data}), tmp_path / "barns")
    assert not after.score_fr.weight.any()
    saved = load_checkpoint(parent).ema
    assert saved is not None
    assert torch.equal(after.state_dict()["backbone.fc7.weight"], saved["backbone.fc7.weight"])
    assert "15 layers copied (backbone.conv1_1 to backbone.fc7); new: score_fr" in (
        capsys.readouterr().out
    )


def test_a_resumed_stage_does_not_start_anew(tmp_path: Path, parent: Path, stage: Stage) -> None:
    """Nor does it need the stage before it any more."""
    own = tmp_path / "32s.pt"
    own.write_bytes(parent.read_bytes())
    config = stage(own, variant="16s")
    straight = train(config, tmp_path / "straight", run_log=None)
    train(config, tmp_path / "parts", stop_after=1, run_log=None)
    own.unlink()
    resumed = train(config, tmp_path / "parts", resume=True, run_log=None)
    assert torch.equal(resumed.weights["score_fr.weight"], straight.weights["score_fr.weight"])


@pytest.mark.parametrize(
    ("network", "complaint"),
    [
        ({"padding": "same"}, r"network\.padding \(there pad100, here same\)"),
        ({"preprocessing": "torchvision"}, r"network\.preprocessing \(there caffe, here torchv"),
        ({"fc6_channels": 6}, r"backbone\.fc6\.bias is \(8,\) in .*, want \(6,\)"),
        (
            {"backbone": "alexnet"},
            r"is of another net: network\.backbone \(there vgg16, here alexnet\)",
        ),
        ({"variant": "pool4", "fc6_channels": None}, r"score_fr\.weight is \(4, 8, 1, 1\)"),
    ],
)
def test_a_checkpoint_of_another_net(
    tmp_path: Path,
    parent: Path,
    stage: Stage,
    network: dict[str, Any],
    complaint: str,
) -> None:
    with pytest.raises(ConfigError, match=rf"init\.checkpoint: .*{complaint}"):
        begun(stage(parent, **network), tmp_path / "run")


def test_layers_that_would_mean_another_thing(tmp_path: Path, parent: Path, stage: Stage) -> None:
    """A factor that is new may be any, one that the parent learned with may not."""
    train(
        stage(parent, variant="16s", pool4_scale=0.01), tmp_path / "16s", stop_after=1, run_log=None
    )
    with pytest.raises(ConfigError, match=r"network\.pool4_scale \(there 0\.01, here 1\.0\)"):
        begun(stage(tmp_path / "16s/last.pt", variant="8s"), tmp_path / "8s")


def test_a_backbone_that_lacks_layers(tmp_path: Path, parent: Path, stage: Stage) -> None:
    cut = stage(variant="pool4", fc6_channels=None)
    train(cut, tmp_path / "pool4", stop_after=1, run_log=None)
    with pytest.raises(ConfigError, match=r"last\.pt has no backbone\.conv5_1\.weight: it is of"):
        begun(stage(tmp_path / "pool4/last.pt"), tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, r"there is no checkpoint .*old\.pt; train the previous"),
        (b"junk", r"old\.pt is not a"),
    ],
)
def test_an_unusable_checkpoint(
    tmp_path: Path, stage: Stage, content: bytes | None, complaint: str
) -> None:
    path = tmp_path / "old.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"init\.checkpoint: .*{complaint}"):
        begun(stage(path), tmp_path / "run")


def test_a_stage_starts_from_an_exported_model(tmp_path: Path, stage: Stage, capsys: Any) -> None:
    """Whose norms are folded: measured anew, they give what it gave."""
    model = exported(MOBILE)
    spec = {**asdict(MOBILE), "variant": "4s", "pool2_channels": 0}
    classes = tmp_path / "classes.yaml"
    listed = [{"name": c.name, "color": list(c.color)} for c in model.contract.classes]
    classes.write_text(json.dumps({"name": "x", "licence": "x", "classes": listed}))
    config = stage(model.path, **spec)
    data = config.data.model_copy(update={"classes": classes, "allow_absent": True})
    after = begun(config.model_copy(update={"data": data}), tmp_path / "own")
    images = torch.rand(1, 3, 64, 96) * 255
    with torch.inference_mode():
        for ours, its in zip(
            after.backbone(images).values(), model.network.backbone(images).values(), strict=True
        ):
            torch.testing.assert_close(ours, its, rtol=1e-3, atol=1e-3)
    said = capsys.readouterr().out
    assert "backbone.conv0.conv to score_pool3.3); new: score_pool2" in said
    # Other classes: all scores are new.
    other = begun(config, tmp_path / "other")
    assert not other.score_fr.weight.any() and "new: score_fr, score_pool4.0" in (
        capsys.readouterr().out
    )
    with pytest.raises(ConfigError, match=r"network\.skip_channels \(there 4, here 2\)"):
        begun(stage(model.path, **{**spec, "skip_channels": 2}), tmp_path / "narrow")
    with pytest.raises(ConfigError, match=r"init\.checkpoint: .*fc6\.conv: mismatch"):
        begun(stage(model.path, **{**spec, "fc6_channels": 9}), tmp_path / "fc6")
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    for name in ("junk.onnx", "none.onnx"):
        with pytest.raises(ConfigError, match=rf"init\.checkpoint: .*{name}"):
            begun(stage(tmp_path / name, **spec), tmp_path / "junk")


def test_two_starts_at_once(stage: Stage) -> None:
    with pytest.raises(ConfigError, match="init: .*imagenet and checkpoint both say how to start"):
        stage(init={"imagenet": "a.npz", "checkpoint": "b.pt"})


def test_one_layer_and_none() -> None:
    assert str(Taken(("fc6",), (), ("fc7",))) == "1 layer copied (fc6); not wanted: fc7"
