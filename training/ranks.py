"""The processes of one run, as torchrun starts them; a run of one process is the same with nobody
to talk to.

Numbers on the CPU travel by gloo, gradients on GPUs by NCCL. What all processes must agree on is
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
"""In the words of torch for a process that is gone or silent."""

Item = TypeVar("Item")


class RankError(RuntimeError):
    """Another process of the run failed or does not answer."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of its run."""

    rank: int = 0
    count: int = 1
    local: int = 0
    """Among those on this machine: the GPU it takes."""

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and shows bars."""
        return self.rank == 0

    def device(self) -> torch.device:
        if torch.cuda.is_available():
            return torch.device("cuda", self.local)
        return torch.device("cpu")

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's part; the parts follow one another and differ by one at most."""
        bounds = np.linspace(0, len(items), self.count + 1).astype(int)
        return list(items[bounds[self.rank] : bounds[self.rank + 1]])

    def sum(self, own: Tensor) -> Tensor:
        """The sum over all processes, the same in each, without a gradient."""
        total = own.detach().clone()
        if self.count > 1:
            dist.all_reduce(total)
        return total

    def sum_number(self, own: float) -> float:
        return float(self.sum(torch.tensor(own, dtype=torch.float64)))

    def sum_with_own_gradient(self, own: Tensor) -> Tensor:
        """The sum over all processes, with the gradient of this one's part of it: the gradients
        of a function of it, summed over the processes, are those of one process with all."""
        return own if self.count == 1 else own + (self.sum(own) - own.detach())

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()

    def gather(self, own: Tensor) -> list[Tensor]:
        """CPU tensors of one shape, by rank."""
        if self.count == 1:
            return [own]
        gathered = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(gathered, own)
        return gathered


ALONE = Ranks()


@contextmanager
def joined(timeout_s: float = TIMEOUT_S) -> Iterator[Ranks]:
    """The processes that torchrun started, or ALONE without it.

    Raises: RankError in place of torch's errors about a process that is gone or silent for
    `timeout_s`.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield ALONE
        return
    on_gpu = torch.cuda.is_available()
    local = dist.get_node_local_rank()
    if on_gpu:
        if local >= torch.cuda.device_count():
            raise RankError(
                f"process {local} of this machine has no GPU, it has {torch.cuda.device_count()}: "
                "start torchrun with that --nproc-per-node"
            )
        torch.cuda.set_device(local)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=timedelta(seconds=timeout_s)
        )
        yield Ranks(dist.get_rank(), dist.get_world_size(), local)
    except RankError:
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not _LOST.search(str(error)):
            raise
        raise RankError(
            "another process of this run ended or has not answered for "
            f"{timeout_s:g} s: its own message says why; go on from the last checkpoint with "
            f"--resume ({str(error).splitlines()[0]})"
        ) from error
    # Only here: after an error the others may never come to take their leave.
    dist.destroy_process_group()
