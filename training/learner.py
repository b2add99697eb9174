"""What an iteration changes: weights, optimiser and moving average; and the iteration itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from model.fcn import FCN
from model.heads import HeadSizes, split
from training.checkpoint import Checkpoint
from training.config import ConfigError, LossConfig, TrainConfig
from training.losses import cross_entropy, sampled_cross_entropy, soft_dice
from training.optimization import WeightAverage, make_optimizer, rate_factor, set_rates


class Learner:
    """A network on its device, and everything that trains it.

    `iteration` is how many of `total` are done. `class_weights`: float [C] on that device, or None.
    """

    def __init__(
        self,
        network: FCN,
        config: TrainConfig,
        total: int,
        device: torch.device,
        class_weights: Tensor | None,
    ) -> None:
        self.network, self.config, self.total, self.device = network, config, total, device
        self.class_weights = class_weights
        self.iteration = 0
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(network, config.optimizer)
        decay = config.schedule.ema_decay
        self.average = WeightAverage(network, decay) if decay else None

    def step(self, images: Tensor, target: Tensor) -> float:
        """One iteration on uint8 [N,3,h,w] RGB and uint8 [N,h,w]; returns the loss.

        Raises: ConfigError if the loss is no number.
        """
        set_rates(self.optimizer, self.rate_factor(self.iteration))
        images = images.to(self.device, non_blocking=True).float()
        target = target.to(self.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            logits = self.network(images.contiguous(memory_format=torch.channels_last))
        loss = heads_loss(logits, target, self.network.heads, self.config.loss, self.class_weights)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.iteration += 1
        if self.average is not None:
            self.average.update(self.network, self.iteration)
        value = loss.item()
        if not math.isfinite(value):
            raise ConfigError(
                f"the loss is {value} at iteration {self.iteration}: lower the learning rates"
            )
        return value

    def rate_factor(self, iteration: int) -> float:
        """What the base rates are multiplied by at `iteration`, 0-based."""
        return rate_factor(iteration, self.total, self.config.schedule)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The network has its averaged weights, if an average is kept, inside the block."""
        if self.average is None:
            yield
            return
        trained = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.average.state)
        try:
            yield
        finally:
            self.network.load_state_dict(trained)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Weights, average, optimiser, iteration and random state as they were saved."""
        self.network.load_state_dict(checkpoint.weights)
        if self.average is not None and checkpoint.ema is not None:
            self.average.state = {
                name: value.to(self.device) for name, value in checkpoint.ema.items()
            }
        self.optimizer.load_state_dict(checkpoint.optimizer)
        torch.set_rng_state(checkpoint.random_state)
        if checkpoint.cuda_random_state is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint.cuda_random_state)
        self.iteration = checkpoint.iteration

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
        )


def heads_loss(
    logits: Tensor,
    target: Tensor,
    heads: HeadSizes,
    config: LossConfig,
    class_weights: Tensor | None,
) -> Tensor:
    """`batch_loss`; of several heads the sum of theirs, which thus weigh the same, over targets
    [N,h,w,K]."""
    if len(heads) == 1:
        return batch_loss(logits, target, config, class_weights)
    losses = [
        batch_loss(own, target[..., index], config, class_weights)
        for index, own in enumerate(split(logits, heads).values())
    ]
    return torch.stack(losses).sum()


def batch_loss(
    logits: Tensor, target: Tensor, config: LossConfig, class_weights: Tensor | None
) -> Tensor:
    """Scalar, float32. Shapes as in `losses.cross_entropy`."""
    if config.sample < 1:
        loss = sampled_cross_entropy(
            logits, target, config.sample, config.sample_cell_px, class_weights, config.reduction
        )
    else:
        loss = cross_entropy(logits, target, class_weights, config.reduction)
    if config.dice:
        loss = loss + config.dice * soft_dice(logits, target)
    return loss
