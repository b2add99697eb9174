"""Makes parameter groups, the polynomial schedule and the moving average of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.network import SegmentationNetwork
from training.config import OptimizerConfig, ScheduleConfig


def make_optimizer(network: SegmentationNetwork, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Give backbone and head their own rates, biases and norms no decay, and the biases of
    convolutions `bias_lr_factor` times the rate.

    Each group keeps its rate at the schedule's start as `base_lr`. With `trainable:
    score_layers` the other parameters are in no group, and need no gradient from now on.
    """
    scoring = {id(p) for layer in network.score_layers() for p in layer.parameters()}
    for parameter in network.parameters():
        parameter.requires_grad_(config.trainable == "all" or id(parameter) in scoring)
    pretrained = {
        id(parameter)
        for module in network.backbone.pretrained_modules()
        for parameter in module.parameters()
    }
    factors = {
        id(module.bias): config.bias_lr_factor
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    }
    kinds = dict.fromkeys([(True, 1.0), (False, 1.0), (False, config.bias_lr_factor)])
    groups = []
    for is_backbone, base_lr in ((True, config.backbone_lr), (False, config.head_lr)):
        for decays, factor in kinds:
            members = [
                parameter
                for parameter in network.parameters()
                if parameter.requires_grad
                and (id(parameter) in pretrained) is is_backbone
                and (parameter.ndim > 1) is decays
                and factors.get(id(parameter), 1.0) == factor
            ]
            if members:
                lr, decay = factor * base_lr, config.weight_decay if decays else 0.0
                groups.append({"params": members, "lr": lr, "base_lr": lr, "weight_decay": decay})
    if config.kind == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum)
    return torch.optim.AdamW(groups)


def lr_factor(iteration: int, total: int, config: ScheduleConfig) -> float:
    """Compute the factor of the base learning rates at `iteration` (0-based) of `total`."""
    warmup = min(1.0, (iteration + 1) / (config.warmup_iterations + 1))
    return float(warmup * (1 - iteration / total) ** config.power)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give each group `factor` times its base learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


class WeightAverage:
    """Keeps an exponential moving average of a network's weights and norm statistics."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, iteration: int) -> None:
        """Take in the weights of `iteration`. The decay grows from 0 so that the untrained start is
        forgotten (as TensorFlow's ExponentialMovingAverage does with num_updates)."""
        decay = min(self.decay, (1 + iteration) / (10 + iteration))
        mine: list[Tensor] = []
        theirs: list[Tensor] = []
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                mine.append(self.state[name])
                theirs.append(value)
            else:
                self.state[name].copy_(value)
        torch._foreach_lerp_(mine, theirs, 1 - decay)
