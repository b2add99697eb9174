"""Keeps the state that an iteration changes (weights, optimiser, moving average), and does it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.backbones.norms import measure
from model.network import SegmentationNetwork
from training.checkpoint import Checkpoint
from training.config import ConfigError, TrainConfig
from training.distributed import SINGLE, World
from training.loader import Step
from training.losses import distillation, heads_loss, labelled_weight, map_distillation
from training.optimization import WeightAverage, lr_factor, make_optimizer, set_lr
from training.precision import uses_bf16

Forward = Callable[[Tensor], Tensor]
"""Maps float [N,3,H,W] images in 0..255 to float [N,C,H,W] logits."""


class Learner:
    """Holds a network on its device, and everything that trains it.

    `iteration` is how many of `total` are done. `class_weights`: float [C] on that device, or None.
    `teacher`: a network that gives the same classes, or None.
    Every process of `world` ends each step with the same weights, averages and norm statistics,
    and returns the same loss.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        config: TrainConfig,
        total: int,
        class_weights: Tensor | None = None,
        world: World = SINGLE,
        teacher: SegmentationNetwork | None = None,
    ) -> None:
        self.config, self.total, self.world = config, total, world
        self.class_weights = class_weights
        self.device = world.device()
        self.iteration = 0
        network.backbone.recompute = config.activation_checkpointing
        self.bf16 = uses_bf16(config.precision, self.device)
        self.memory_format = _memory_format(network, self.device, self.bf16)
        network.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        if world.size > 1 and self.device.type == "cuda":
            # There is none for the CPU.
            nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        self.network = network
        self.optimizer = make_optimizer(network, config.optimizer)
        self.parallel = _parallel(network, world)
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

    def step(self, batches: Step) -> float:
        """Do one iteration on this process's part of each batch of the step; returns the loss.

        `mean` is over the labelled pixels of all batches and processes, so that the step is that
        of one batch with all their images. On a GPU only the loss at the end is waited for.
        Raises: ConfigError if the loss is no number.
        """
        set_lr(self.optimizer, self.lr_factor(self.iteration))
        self.optimizer.zero_grad(set_to_none=True)
        targets = [target.to(self.device, non_blocking=True) for _images, target in batches]
        maps: list[Tensor | None] = [None] * len(targets)
        if self.config.distill.maps is not None:  # see training.datasets.taught
            maps = [target[..., 1:] for target in targets]
            targets = [target[..., 0] for target in targets]
        normaliser = self.world.sum(labelled_weight(targets, self.class_weights))
        taught = self._teacher_weight(targets)
        total = torch.zeros((), device=self.device)
        for index, ((images, _target), target, taught_map) in enumerate(
            zip(batches, targets, maps, strict=True), 1
        ):
            with self._exchange(last=index == len(batches)):
                images = images.to(self.device, non_blocking=True).float()
                images = images.contiguous(memory_format=self.memory_format)
                with self._autocast():
                    logits = self.forward(images)
                loss = heads_loss(
                    logits, target, self.network.heads,
                    self.config.loss, self.class_weights, normaliser, self.world,
                )  # fmt: skip
                if self.teacher is not None:
                    loss = loss + taught * self._distillation(self.teacher, images, logits, target)
                if taught_map is not None:
                    loss = loss + taught * map_distillation(logits, taught_map, target)
                # The processes' gradients are averaged, but it is their sum that is wanted.
                (loss * self.world.size).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self.optimizer.step()
        self.iteration += 1
        self._average_norms()
        if self.average is not None:
            self.average.update(self.network, self.iteration)
        value = self.world.sum(total).item()
        if not math.isfinite(value):
            raise ConfigError(
                f"the loss is {value} at iteration {self.iteration}: lower the learning rates"
            )
        return value

    def _teacher_weight(self, targets: Sequence[Tensor]) -> Tensor:
        """Compute the factor of a batch's summed distillation loss that makes the step's a mean."""
        if self.teacher is None and self.config.distill.maps is None:
            return torch.zeros(())
        pixels = self.world.sum(labelled_weight(targets))
        return (self.config.distill.weight / pixels).float()

    def _distillation(
        self, teacher: Forward, images: Tensor, logits: Tensor, target: Tensor
    ) -> Tensor:
        """Sum the distillation loss over the labelled pixels of one batch."""
        with torch.no_grad(), self._autocast():
            wanted = teacher(images)
        return distillation(logits, wanted, target, self.config.distill.temperature)

    def lr_factor(self, iteration: int) -> float:
        """Compute the factor of the base learning rates at `iteration`, 0-based."""
        return lr_factor(iteration, self.total, self.config.schedule)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Give the network its averaged weights, if an average is kept, inside the block."""
        if self.average is None:
            yield
            return
        trained = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.average.state)
        try:
            yield
        finally:
            self.network.load_state_dict(trained)

    def measure_norms(self, steps: Iterable[Step]) -> None:
        """Measure the norms of the averaged weights on this process's part of `steps`, in place of
        the average of statistics that come of a few crops each."""
        images = (
            images.to(self.device).float().contiguous(memory_format=self.memory_format)
            for step in steps
            for images, _target in step
        )
        with self.averaged_weights():
            measure(self.network, images, self.world.sum)
            measured = {name: value.clone() for name, value in self.network.named_buffers()}
        state = self.network.state_dict() if self.average is None else self.average.state
        for name, value in measured.items():
            if name in state:
                state[name].copy_(value)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore weights, average, optimiser, iteration and random state as they were saved."""
        self.network.load_state_dict(checkpoint.weights)
        if self.average is not None and checkpoint.ema is not None:
            self.average.state = {
                name: value.to(self.device) for name, value in checkpoint.ema.items()
            }
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.iteration = checkpoint.iteration
        rank = self.world.rank
        if rank < len(checkpoint.random_states):  # else begun with fewer processes
            torch.set_rng_state(checkpoint.random_states[rank])
        if rank < len(checkpoint.cuda_random_states) and self.device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint.cuda_random_states[rank])

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _exchange(self, last: bool) -> AbstractContextManager[None]:
        """Exchange gradients once a step, in the backward pass of its last batch."""
        if last or not isinstance(self.parallel, DistributedDataParallel):
            return nullcontext()
        return self.parallel.no_sync()

    @torch.no_grad()
    def _average_norms(self) -> None:
        """Make the norms' running statistics the mean over the processes', since on the CPU each
        process's norms see its own images."""
        if self.world.size == 1:
            return
        statistics = [
            statistic
            for module in self.network.modules()
            if isinstance(module, nn.BatchNorm2d)
            for statistic in (module.running_mean, module.running_var)
            if statistic is not None
        ]
        if not statistics:
            return
        # Summed at once: two exchanges for each of fifty norms took a quarter of a step.
        means = self.world.sum(torch.cat(statistics)) / self.world.size
        for statistic, mean in zip(
            statistics, torch.split(means, [len(each) for each in statistics]), strict=True
        ):
            statistic.copy_(mean)


def _memory_format(
    network: SegmentationNetwork, device: torch.device, bf16: bool
) -> torch.memory_format:
    """Choose channels last for tensor cores and bf16 kernels, and for depthwise convolutions on a
    CPU; the large plain ones in fp32 took a fifth longer with it there (bench/LOG.md)."""
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 2 for m in network.modules())
    if device.type == "cpu" and not bf16 and not depthwise:
        return torch.contiguous_format
    return torch.channels_last


def _parallel(network: SegmentationNetwork, world: World) -> nn.Module:
    if world.size == 1:
        return network
    device_ids = [world.local_rank] if torch.cuda.is_available() else None
    # Every process gets the first one's weights now. Buffers: see `_average_norms`.
    return DistributedDataParallel(network, device_ids=device_ids, forward_sync_buffers=False)
