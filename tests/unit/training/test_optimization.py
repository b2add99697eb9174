"""Parameter groups, the schedule and the moving average."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn

from model.backbones.vgg16 import VGG16
from model.build import NetworkSpec, build
from model.fcn import FCN
from model.upsample import Upsampling
from training.config import OptimizerConfig, ScheduleConfig
from training.optimization import WeightAverage, lr_factor, make_optimizer, set_lr

NARROW = NetworkSpec("mobilenet_v1", fc6_channels=16, width=0.125)
SKIPPING = replace(NARROW, skip_channels=8)
CONFIG = OptimizerConfig(head_lr=1e-2, backbone_lr=1e-3, weight_decay=0.3)


def kinds(optimizer: torch.optim.Optimizer) -> dict[int, tuple[float, float]]:
    """Learning rate and decay by the identity of a parameter."""
    return {
        id(p): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


def test_rates_and_decay_by_kind_of_parameter() -> None:
    net = build(SKIPPING, 4)
    optimizer = make_optimizer(net, CONFIG)
    got = kinds(optimizer)
    parameters = dict(net.named_parameters())
    for name, wanted in {
        "backbone.conv0.conv.weight": (1e-3, 0.3),
        "backbone.dw3.conv.weight": (1e-3, 0.3),
        "backbone.pw13.norm.weight": (1e-3, 0.0),
        "backbone.pw13.norm.bias": (1e-3, 0.0),
        "backbone.fc6.conv.weight": (1e-2, 0.3),  # not from ImageNet
        "score_fr.weight": (1e-2, 0.3),
        "score_fr.bias": (1e-2, 0.0),
        "score_pool3.1.weight": (1e-2, 0.0),  # the skip's norm
    }.items():
        assert got[id(parameters[name])] == wanted, name


def test_biases_at_twice_the_rate_and_without_decay() -> None:
    """This is for convolutions; a norm's bias is another thing."""
    net = build(SKIPPING, 4)
    config = CONFIG.model_copy(update={"bias_lr_factor": 2.0})
    optimizer = make_optimizer(net, config)
    got = kinds(optimizer)
    parameters = dict(net.named_parameters())
    assert len(got) == len(parameters)
    for name, wanted in {
        "backbone.conv0.conv.weight": (1e-3, 0.3),
        "backbone.conv0.norm.bias": (1e-3, 0.0),
        "score_fr.weight": (1e-2, 0.3),
        "score_fr.bias": (2e-2, 0.0),
        "score_pool3.1.bias": (1e-2, 0.0),
        "score_pool3.3.bias": (2e-2, 0.0),
    }.items():
        assert got[id(parameters[name])] == wanted, name
    vgg = FCN(VGG16("same", 4, width=1 / 32), 3, "32s")
    groups = make_optimizer(vgg, config).param_groups
    rates = {(g["lr"], g["weight_decay"], g["params"][0].ndim) for g in groups}
    # The fc6 of this narrow net is new, hence at the head's rate.
    assert rates == {(1e-3, 0.3, 4), (2e-3, 0.0, 1), (1e-2, 0.3, 4), (2e-2, 0.0, 1)}
    set_lr(make_optimizer(vgg, config), 0.5)


@pytest.mark.parametrize("upsampling", get_args(Upsampling))
def test_score_alone_learns(upsampling: Upsampling) -> None:
    """FCN-32s-fixed: nothing but the score layers moves, weight decay included."""
    torch.manual_seed(0)
    net = FCN(VGG16("same", 4, width=1 / 32), 3, "16s", upsampling)
    before = {name: value.clone() for name, value in net.named_parameters()}
    optimizer = make_optimizer(net, OptimizerConfig(trainable="score_layers", weight_decay=0.3))
    for _ in range(2):
        optimizer.zero_grad()
        (net(torch.rand(1, 3, 33, 40) * 255) - 1).square().mean().backward()
        optimizer.step()
    moved = {name for name, value in net.named_parameters() if not torch.equal(value, before[name])}
    scores = {"score_fr", "score_pool4"}
    assert moved == {f"{name}.{part}" for name in scores for part in ("weight", "bias")}


def test_polynomial_schedule() -> None:
    config = ScheduleConfig(epochs=1, power=0.9)
    assert lr_factor(0, 100, config) == 1
    assert lr_factor(50, 100, config) == pytest.approx(0.5**0.9)
    assert lr_factor(99, 100, config) == pytest.approx(0.01**0.9)
    assert lr_factor(99, 100, ScheduleConfig(epochs=1, power=0)) == 1


def test_warm_up_is_linear_and_ends_at_the_schedule() -> None:
    config = ScheduleConfig(epochs=1, power=0, warmup_iterations=4)
    assert [lr_factor(i, 100, config) for i in range(6)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1, 1]
    )


def test_set_lr_keeps_the_groups_apart() -> None:
    net = build(NARROW, 4)
    optimizer = make_optimizer(net, CONFIG)
    for factor in (0.5, 0.25):  # of the base rate, not of the last one
        set_lr(optimizer, factor)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25e-2, 0.25e-3}


def test_average_follows_its_formula() -> None:
    layer = nn.BatchNorm1d(1)
    average = WeightAverage(layer, decay=0.5)
    wanted = 1.0
    for iteration, value in enumerate([3.0, 5.0, -2.0] * 4, start=1):
        with torch.no_grad():
            layer.weight.fill_(value)
            layer.running_mean.fill_(value)  # type: ignore[union-attr]
            layer.num_batches_tracked.fill_(iteration)  # type: ignore[union-attr]
        average.update(layer, iteration)
        decay = min(0.5, (1 + iteration) / (10 + iteration))
        wanted = decay * wanted + (1 - decay) * value
        assert float(average.state["weight"]) == pytest.approx(wanted, rel=1e-5)
    assert float(average.state["running_mean"]) == pytest.approx(wanted - _start_share(), abs=1e-4)
    assert int(average.state["num_batches_tracked"]) == 12


def _start_share() -> float:
    """Compute what is left of the start value 1 of `weight`; `running_mean` starts from 0."""
    share = 1.0
    for iteration in range(1, 13):
        share *= min(0.5, (1 + iteration) / (10 + iteration))
    return share
