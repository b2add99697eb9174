"""What an iteration changes: weights, optimiser and moving average; and the iteration itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.fcn import FCN
from model.heads import HeadSizes, split
from training.checkpoint import Checkpoint
from training.config import ConfigError, LossConfig, TrainConfig
from training.loader import Batch
from training.losses import (
    cross_entropy,
    distillation,
    labelled_mass,
    sample_cells,
    soft_dice,
)
from training.optimization import WeightAverage, make_optimizer, rate_factor, set_rates
from training.precision import uses_bf16
from training.ranks import ALONE, Ranks

Forward = Callable[[Tensor], Tensor]
"""float [N,3,H,W] images in 0..255 -> float [N,C,H,W] logits."""


class Learner:
    """A network on its device, and everything that trains it.

    `iteration` is how many of `total` are done. `class_weights`: float [C] on that device, or None.
    `teacher`: a network that gives the same classes, or None.
    Every process of `ranks` ends each step with the same weights, averages and norm statistics,
    and returns the same loss.
    """

    def __init__(
        self,
        network: FCN,
        config: TrainConfig,
        total: int,
        class_weights: Tensor | None = None,
        ranks: Ranks = ALONE,
        teacher: FCN | None = None,
    ) -> None:
        self.config, self.total, self.ranks = config, total, ranks
        self.class_weights = class_weights
        self.device = ranks.device()
        self.iteration = 0
        network.backbone.recompute = config.activation_checkpointing
        self.bf16 = uses_bf16(config.precision, self.device)
        self.memory_format = _memory_format(network, self.device, self.bf16)
        network.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        if ranks.count > 1 and self.device.type == "cuda":
            # There is none for the CPU.
            nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        self.network = network
        self.optimizer = make_optimizer(network, config.optimizer)
        self.parallel = _parallel(network, ranks)
        self.forward: Forward = self.parallel
        self.teacher: Forward | None = None
        if teacher is not None:
            self.teacher = teacher.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        if config.compile:
            # The weights stay the network's own: validation and checkpoints know nothing of it.
            self.forward = torch.compile(self.parallel)
            self.teacher = torch.compile(self.teacher) if self.teacher else None
        decay = config.schedule.ema_decay
        self.average = WeightAverage(network, decay) if decay else None

    def step(self, batches: Sequence[Batch]) -> float:
        """One iteration on this process's part of each batch of the step; returns the loss.

        `mean` is over the labelled pixels of all batches and processes, so that the step is that
        of one batch with all their images. Raises: ConfigError if the loss is no number.
        """
        set_rates(self.optimizer, self.rate_factor(self.iteration))
        self.optimizer.zero_grad(set_to_none=True)
        targets = [target.to(self.device, non_blocking=True) for _images, target in batches]
        mass = self.ranks.sum_number(sum(labelled_mass(t, self.class_weights) for t in targets))
        pixels = self._labelled_pixels(targets)
        value = 0.0
        for index, ((images, _target), target) in enumerate(zip(batches, targets, strict=True), 1):
            with self._exchange(last=index == len(batches)):
                images = images.to(self.device, non_blocking=True).float()
                images = images.contiguous(memory_format=self.memory_format)
                with self._autocast():
                    logits = self.forward(images)
                loss = heads_loss(
                    logits, target, self.network.heads,
                    self.config.loss, self.class_weights, mass, self.ranks,
                )  # fmt: skip
                if self.teacher is not None:
                    loss = loss + self._taught(self.teacher, images, logits, target) / pixels
                # The processes' gradients are averaged, but it is their sum that is wanted.
                (loss * self.ranks.count).backward()  # type: ignore[no-untyped-call]
            value += loss.item()
        self.optimizer.step()
        self.iteration += 1
        self._average_norms()
        if self.average is not None:
            self.average.update(self.network, self.iteration)
        value = self.ranks.sum_number(value)
        if not math.isfinite(value):
            raise ConfigError(
                f"the loss is {value} at iteration {self.iteration}: lower the learning rates"
            )
        return value

    def _labelled_pixels(self, targets: Sequence[Tensor]) -> float:
        """Of the whole step; only a teacher's part of the loss asks for them."""
        if self.teacher is None:
            return 1.0
        return self.ranks.sum_number(sum(labelled_mass(target) for target in targets))

    def _taught(self, teacher: Forward, images: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        """Times its weight, and not yet divided by the pixels."""
        config = self.config.distill
        with torch.no_grad(), self._autocast():
            wanted = teacher(images)
        return config.weight * distillation(logits, wanted, target, config.temperature)

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
        self.iteration = checkpoint.iteration
        rank = self.ranks.rank
        if rank < len(checkpoint.random_states):  # else begun with fewer processes
            torch.set_rng_state(checkpoint.random_states[rank])
        if rank < len(checkpoint.cuda_random_states) and self.device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint.cuda_random_states[rank])

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _exchange(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged once a step, in the backward pass of its last batch."""
        if last or not isinstance(self.parallel, DistributedDataParallel):
            return nullcontext()
        return self.parallel.no_sync()

    @torch.no_grad()
    def _average_norms(self) -> None:
        """On the CPU each process's norms see its own images: their running statistics become the
        mean over the processes'."""
        if self.ranks.count == 1:
            return
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for statistic in (module.running_mean, module.running_var):
                    if statistic is not None:
                        statistic.copy_(self.ranks.sum(statistic) / self.ranks.count)


def _memory_format(network: FCN, device: torch.device, bf16: bool) -> torch.memory_format:
    """Channels last is what tensor cores and bf16 kernels want, and depthwise convolutions on a
    CPU; the large plain ones in fp32 took a fifth longer with it there (bench/LOG.md)."""
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 2 for m in network.modules())
    if device.type == "cpu" and not bf16 and not depthwise:
        return torch.contiguous_format
    return torch.channels_last


def _parallel(network: FCN, ranks: Ranks) -> nn.Module:
    if ranks.count == 1:
        return network
    device_ids = [ranks.local] if torch.cuda.is_available() else None
    # Every process gets the first one's weights now. Buffers: see `_average_norms`.
    return DistributedDataParallel(network, device_ids=device_ids, forward_sync_buffers=False)


def heads_loss(
    logits: Tensor,
    target: Tensor,
    heads: HeadSizes,
    config: LossConfig,
    class_weights: Tensor | None,
    mass: float,
    ranks: Ranks = ALONE,
) -> Tensor:
    """`batch_loss`; of several heads the sum of theirs, which thus weigh the same, over targets
    [N,h,w,K]."""
    if len(heads) == 1:
        return batch_loss(logits, target, config, class_weights, mass, ranks)
    losses = [
        batch_loss(own, target[..., index], config, class_weights, mass, ranks)
        for index, own in enumerate(split(logits, heads).values())
    ]
    return torch.stack(losses).sum()


def batch_loss(
    logits: Tensor,
    target: Tensor,
    config: LossConfig,
    class_weights: Tensor | None,
    mass: float,
    ranks: Ranks = ALONE,
) -> Tensor:
    """This batch's and process's part of the step's loss; scalar, float32.

    Shapes as in `losses.cross_entropy`. `mass`: `labelled_mass` of the whole step. The parts of
    all batches and processes sum to the loss, and their gradients to its gradient.
    """
    if config.sample < 1:
        target_of_sum = sample_cells(target, config.sample, config.sample_cell_px)
    else:
        target_of_sum = target
    loss = cross_entropy(logits, target_of_sum, class_weights, "sum")
    if config.reduction == "mean":
        loss = loss / (config.sample * mass)
    if config.dice:
        dice = config.dice * soft_dice(logits, target, ranks.sum_with_own_gradient)
        # Every process has the whole value, but only its own part of the gradient.
        loss = loss + dice - dice.detach() * (1 - 1 / ranks.count)
    return loss
