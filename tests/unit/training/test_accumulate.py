"""Gradient accumulation and activation checkpointing change memory and time, not the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from model.backbones import recompute
from model.backbones.alexnet import AlexNet
from model.backbones.base import Backbone
from model.backbones.googlenet import GoogLeNet
from model.backbones.mobilenet_v1 import MobileNetV1
from model.backbones.vgg16 import VGG16
from model.fcn import FCN, AnyVariant
from tests.unit.training.recipes import PLAIN, MakeConfig, Run
from tests.unit.training.test_train import assert_same_state
from training.config import ConfigError
from training.loader import EpochPlan, StepSampler
from training.train import train


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("batch_size", "accumulate"), [(1, 3), (4, 2)])
def test_as_one_batch_of_all_their_images(
    tmp_path: Path, make_config: MakeConfig, reduction: str, batch_size: int, accumulate: int
) -> None:
    """`mean` weighs by labelled pixels, of which these crops have unequal numbers. The last case
    has more than the 6 images there are: then a step is all of them."""
    plain = {**PLAIN, "loss__dice": 0.0, "loss__reduction": reduction}
    if reduction == "sum":
        plain |= {"optimizer__head_lr": 1e-5, "optimizer__backbone_lr": 1e-5}
    small = {"schedule__batch_size": batch_size, "schedule__accumulate": accumulate}
    parts = train(make_config(**plain, **small), tmp_path / "parts", run_log=None)
    at_once = make_config(**plain, schedule__batch_size=batch_size * accumulate)
    whole = train(at_once, tmp_path / "whole", run_log=None)
    assert parts.iteration == whole.iteration
    for name, value in whole.weights.items():
        torch.testing.assert_close(parts.weights[name], value, rtol=1e-4, atol=1e-5)
    if batch_size * accumulate < 8:
        alone = make_config(**plain, schedule__batch_size=batch_size)
        one = train(alone, tmp_path / "one", run_log=None)
        assert not torch.allclose(one.weights["score_fr.bias"], whole.weights["score_fr.bias"])


def test_resumed_is_the_same_to_the_bit(tmp_path: Path, make_config: MakeConfig) -> None:
    """With dropout and norms, and with the backbone computed twice."""
    config = make_config(
        loss__dice=0.0,
        schedule__batch_size=2,
        schedule__accumulate=2,
        schedule__epochs=3,
        activation_checkpointing=True,
    )
    straight = train(config, tmp_path / "straight", run_log=None)
    assert straight.iteration == 3
    train(config, tmp_path / "parts", stop_after=2, run_log=None)
    assert_same_state(straight, train(config, tmp_path / "parts", resume=True, run_log=None))


def test_batches_of_a_step_are_the_large_batch_in_order() -> None:
    parts = list(StepSampler(EpochPlan(13, 2, accumulate=3), 0, 0, 4))
    whole = list(StepSampler(EpochPlan(13, 6), 0, 0, 4))
    assert [len(step) for step in parts] == [3] * 4
    assert [[sum(step, [])] for step in parts] == whole


def test_dice_needs_the_whole_batch(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"loss\.dice is of a whole batch.*accumulate"):
        make_config(schedule__accumulate=2)


def test_computing_activations_again_changes_nothing(
    tmp_path: Path, make_config: MakeConfig, begun: Run, finished: Run
) -> None:
    """To the bit, with dropout, and norms that count each image once; a run may go on with it."""
    again = make_config(activation_checkpointing=True)
    done = train(again, begun.copy(tmp_path / "again"), resume=True, run_log=None)
    assert_same_state(done, finished.checkpoint)


BACKBONES: dict[str, tuple[Callable[[], Backbone], AnyVariant]] = {
    "mobilenet_v1": (lambda: MobileNetV1(fc6_channels=16, width=0.125), "8s"),
    "vgg16": (lambda: VGG16(fc_channels=16, width=1 / 16), "8s"),
    "pool4": (lambda: VGG16(width=1 / 16, cut_after="pool4"), "pool4"),
    "alexnet": (lambda: AlexNet(fc_channels=16, width=1 / 8), "32s"),
    "googlenet": (lambda: GoogLeNet(width=0.25), "16s"),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_the_same_gradients_from_less_memory(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Count what is kept for the gradient: the tensors that autograd saves, and the parts'
    inputs."""
    inputs: list[Tensor] = []

    def noting(function: Any, x: Tensor, **options: Any) -> Any:
        inputs.append(x)
        return checkpoint(function, x, **options)

    monkeypatch.setattr(recompute, "checkpoint", noting)
    torch.manual_seed(0)
    make, variant = BACKBONES[name]
    network = FCN(make(), 4, variant).train()
    for parameter in network.parameters():
        if not parameter.any():  # score layers start at zero, and would stop all gradients
            torch.nn.init.normal_(parameter, std=0.01)
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    images = torch.rand(2, 3, 96, 96) * 255

    def gradients(again: bool) -> tuple[list[Tensor], int]:
        network.backbone.recompute = again
        network.zero_grad()
        torch.manual_seed(1)
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = network(images).square().mean()
        for tensor in inputs:
            keep(tensor)
        inputs.clear()
        loss.backward()
        return [p.grad for p in network.parameters() if p.grad is not None], sum(kept.values())

    plain, plain_bytes = gradients(False)
    again, again_bytes = gradients(True)
    assert len(plain) == len(again) > 5
    assert any(gradient.any() for gradient in plain)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    # AlexNet shrinks the image at once: most of what is left are image and scores.
    share = 0.75 if name == "alexnet" else 0.6
    assert again_bytes < share * plain_bytes
