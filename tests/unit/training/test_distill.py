"""Learning from another network's scores: the loss, its place in a step, and what is refused."""

from __future__ import annotations

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from cli.main import main
from model.build import build
from model.contract import ClassInfo
from model.fcn import FCN
from tests.unit.training.recipes import NARROW, MakeConfig, Run, changed, raw_recipe
from training.config import ConfigError
from training.datasets import DatasetInfo, open_dataset
from training.learner import Learner
from training.losses import distillation, labelled_weight
from training.publish import shared_config
from training.teacher import load_teacher
from training.train import Trainer, train

VOID = 255


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits, teacher = (3 * torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2))
    target = torch.randint(0, 3, (2, 4, 5), generator=generator).to(torch.uint8)
    target[0, :2] = VOID
    return logits, teacher, target


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_divergence_pixel_by_pixel(temperature: float) -> None:
    logits, teacher, target = batch()
    total = 0.0
    for image, row, column in itertools.product(range(2), range(4), range(5)):
        if target[image, row, column] == VOID:
            continue
        own, wanted = (
            (scores[image, :, row, column].double() / temperature).softmax(0).tolist()
            for scores in (logits, teacher)
        )
        total += sum(w * (math.log(w) - math.log(o)) for o, w in zip(own, wanted, strict=True))
    found = float(distillation(logits, teacher, target, temperature))
    assert found == pytest.approx(temperature**2 * total, rel=1e-4)


def test_a_network_that_agrees_loses_nothing() -> None:
    logits, _, target = batch()
    assert float(distillation(logits, logits + 5, target, 2.0)) == pytest.approx(0, abs=1e-5)
    target.fill_(VOID)
    assert float(distillation(logits, -logits, target, 2.0)) == 0


def test_void_pixels_do_not_matter() -> None:
    logits, teacher, target = batch()
    before = float(distillation(logits, teacher, target, 1.0))
    teacher.permute(0, 2, 3, 1)[target == VOID] = 50.0
    logits.permute(0, 2, 3, 1)[target == VOID] = torch.tensor([90.0, 0.0, -90.0])
    assert float(distillation(logits, teacher, target, 1.0)) == pytest.approx(before)


def opposed(config: Any, classes: int = 4) -> FCN:
    torch.manual_seed(5)
    network = build(config.network, classes)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    return network.eval()


def test_a_step_adds_the_teachers_part(make_config: MakeConfig) -> None:
    """To the loss without a teacher: weight times the divergence, over the labelled pixels."""
    config = make_config(
        network={**NARROW, "dropout": 0.0},
        distill={"teacher": "unused.pt", "weight": 0.25, "temperature": 3.0},
    )
    teacher = opposed(config)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 48, 64), generator=generator).to(torch.uint8)
    target = torch.randint(0, 4, (2, 48, 64), generator=generator).to(torch.uint8)
    target[:, :7] = VOID
    losses = {}
    for own in (None, teacher):
        torch.manual_seed(1)
        student = build(config.network, 4)
        losses[own is None] = Learner(student, config, 10, teacher=own).step([(images, target)])
    torch.manual_seed(1)
    fresh = build(config.network, 4).train()
    with torch.no_grad():
        divergence = distillation(fresh(images.float()), teacher(images.float()), target, 3.0)
    part = 0.25 * float(divergence) / float(labelled_weight([target]))
    assert part > 1e-3
    assert losses[False] - losses[True] == pytest.approx(part, rel=1e-4)


def test_two_batches_of_a_step_count_as_one(make_config: MakeConfig) -> None:
    """Their parts are over the pixels of both."""
    config = make_config(
        network={**NARROW, "dropout": 0.0},
        loss={"class_weight_offset": 1.1, "dice": 0.0},
        distill={"teacher": "unused.pt", "temperature": 2.0},
    )
    teacher = opposed(config)
    images = torch.randint(0, 256, (1, 3, 48, 64)).to(torch.uint8)
    target = torch.randint(0, 4, (1, 48, 64)).to(torch.uint8)
    losses = []
    for batches in ([(images, target)], [(images, target), (images, target)]):
        torch.manual_seed(1)
        learner = Learner(build(config.network, 4), config, 10, teacher=teacher)
        losses.append(learner.step(batches))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_network_learns_what_its_teacher_says(
    make_config: MakeConfig, finished: Run, tmp_path: Path
) -> None:
    """A run whose teacher weighs much ends nearer to it than one without."""
    distances: list[float] = []
    for distill in ({}, {"distill": {"teacher": str(finished.last), "weight": 20.0}}):
        config = make_config(seed=7, schedule__epochs=3, **distill)
        folder = tmp_path / f"run{len(distances)}"
        trainer = Trainer(config, folder, resume=False, run_log=None)
        trainer.run()
        data = trainer.val_data[0]
        images = torch.from_numpy(data.image.copy()).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            wanted = finished.checkpoint.build_network()(images)
            own = trainer.network.eval()(images)
        target = torch.zeros(wanted.shape[0], *wanted.shape[2:], dtype=torch.uint8)
        distances.append(float(distillation(own, wanted, target, 1.0)))
    assert distances[1] < 0.7 * distances[0]


def test_what_is_no_teacher_is_refused(begun: Run, tmp_path: Path, streets: Path) -> None:
    info = open_dataset("folder", streets, "train").info
    others = DatasetInfo.single_head(
        (ClassInfo(0, "roof", (1, 2, 3)), *info.classes[1:]), info.data
    )
    (tmp_path / "noise.onnx").write_bytes(b"no model")
    refusals = [
        (tmp_path / "none.pt", info, "there is no checkpoint"),
        (tmp_path / "none.onnx", info, "there is no file"),
        (tmp_path / "noise.onnx", info, "cannot be read as an ONNX model"),
        (begun.last, others, "labels sky, house, road, tree, the data set roof, house"),
    ]
    for path, wanted, message in refusals:
        with pytest.raises(ConfigError, match=message):
            load_teacher(path, wanted)
    depth = DatasetInfo.single_head(info.classes, info.data, modality="rgbd")
    with pytest.raises(ConfigError, match="for RGB images with one labelling"):
        load_teacher(begun.last, depth)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"loss": {"reduction": "sum"}, "precision": "fp32"}, "loss.reduction=mean, not sum"),
        ({"loss": {"sample": 0.5}}, "the teacher speaks of every pixel"),
        ({"distill__weight": 0}, "distill.weight"),
        ({"distill__temperature": -1}, "distill.temperature"),
    ],
)
def test_recipes_in_which_a_teacher_has_no_place(
    make_config: MakeConfig, changes: dict[str, Any], complaint: str
) -> None:
    make_config(distill__teacher="t.pt")
    with pytest.raises(ConfigError, match=complaint):
        make_config(distill__teacher="t.pt", **changes)


def test_cards_name_the_teachers_file_only(make_config: MakeConfig) -> None:
    plain = make_config().model_dump(mode="json")
    assert "distill" not in shared_config(plain)
    del plain["distill"]  # a checkpoint of before there were teachers
    assert "distill" not in shared_config(plain)
    taught = make_config(distill__teacher="/home/me/models/t.onnx").model_dump(mode="json")
    assert shared_config(taught)["distill"]["teacher"] == "t.onnx"


def test_compiled_steps_are_the_plain_ones(
    make_config: MakeConfig, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced by torch.compile, and run by torch as it is: code generation takes a compiler and a
    minute. Losses, and what a checkpoint holds, are those of a plain run."""
    compiled = []

    def counting(module: Any, *_: Any) -> Any:
        compiled.append(module)
        return module

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    runs = {
        on: train(
            make_config(compile=on, distill__teacher=str(finished.last)),
            tmp_path / str(on),
            stop_after=2,
            run_log=None,
        )
        for on in (False, True)
    }
    assert runs[True].epoch_losses == pytest.approx(runs[False].epoch_losses, rel=1e-4)
    assert runs[True].weights.keys() == runs[False].weights.keys()
    monkeypatch.setattr(torch, "compile", counting)
    train(make_config(compile=True), tmp_path / "third", stop_after=1, run_log=None)
    assert len(compiled) == 1


def test_what_compiling_does_not_go_with(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="set compile or activation_checkpointing to false"):
        make_config(compile=True, activation_checkpointing=True)


def test_a_machine_that_cannot_compile_is_told_what_to_do(
    tmp_path: Path,
    streets: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    def fails(*_: Any) -> Any:
        raise BackendCompilerFailed(lambda: None, RuntimeError("no C++ compiler"), None)

    def failing(module: Any) -> Any:
        return fails

    monkeypatch.setattr(torch, "compile", failing)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(changed(raw_recipe(streets), {"compile": True})))
    assert main(["train", str(recipe), "--run", str(tmp_path / "run")]) == 1
    assert "torch.compile fails here" in capsys.readouterr().err
