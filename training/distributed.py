"""Connects the processes of one run, as torchrun starts them; a run of one process is the same with
nobody to talk to.

Numbers on the CPU travel by gloo, those on GPUs by NCCL. What all processes must agree on is
summed, never averaged, so that shares of unequal size count by what is in them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

TIMEOUT_S = 600.0
"""How long a process waits for the others: more than a checkpoint takes to write, or the slowest
share of a validation to end after the fastest."""

_LOST = re.compile(r"gloo|NCCL|timed out|connection (closed|reset|refused)|broken pipe", re.I)
"""Matches torch's words for a process that is gone or silent."""

Item = TypeVar("Item")


class DistributedError(RuntimeError):
    """Another process of the run failed or does not answer."""


@dataclass(frozen=True, slots=True)
class World:
    """Describes the processes of a run as seen from one of them: its rank among `size`."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank on this machine, which is the GPU it takes."""

    @property
    def is_main(self) -> bool:
        """Tell whether this process writes files and shows bars."""
        return self.rank == 0

    def device(self) -> torch.device:
        """Choose this process's GPU where there are any, else the CPU."""
        if torch.cuda.is_available():
            return torch.device("cuda", self.local_rank)
        return torch.device("cpu")

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Take this process's part; the parts follow one another and differ by one at most."""
        bounds = np.linspace(0, len(items), self.size + 1).astype(int)
        return list(items[bounds[self.rank] : bounds[self.rank + 1]])

    def sum(self, own: Tensor) -> Tensor:
        """Sum over all processes: the same in each, on its device, without a gradient."""
        total = own.detach().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def sum_with_own_gradient(self, own: Tensor) -> Tensor:
        """Sum over all processes, with the gradient of this one's part of it: the gradients
        of a function of it, summed over the processes, are those of one process with all."""
        return own if self.size == 1 else own + (self.sum(own) - own.detach())

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def gather(self, own: Tensor) -> list[Tensor]:
        """Collect CPU tensors of one shape, by rank."""
        if self.size == 1:
            return [own]
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(gathered, own)
        return gathered


SINGLE = World()


@contextmanager
def init_distributed(timeout_s: float = TIMEOUT_S) -> Iterator[World]:
    """Join the processes that torchrun started; without it the world is SINGLE.

    Raises: DistributedError in place of torch's errors about a process that is gone or silent for
    `timeout_s`.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield SINGLE
        return
    on_gpu = torch.cuda.is_available()
    local_rank = dist.get_node_local_rank()
    if on_gpu:
        if local_rank >= torch.cuda.device_count():
            raise DistributedError(
                f"process {local_rank} of this machine has no GPU, it has "
                f"{torch.cuda.device_count()}: start torchrun with that --nproc-per-node"
            )
        torch.cuda.set_device(local_rank)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=timedelta(seconds=timeout_s)
        )
        yield World(dist.get_rank(), dist.get_world_size(), local_rank)
    except DistributedError:
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not _LOST.search(str(error)):
            raise
        raise DistributedError(
            "another process of this run ended or has not answered for "
            f"{timeout_s:g} s: its own message says why; go on from the last checkpoint with "
            f"--resume ({str(error).splitlines()[0]})"
        ) from error
    # Only here: after an error the others may never come to take their leave.
    dist.destroy_process_group()
