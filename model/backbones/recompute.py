"""Saves memory by computing a part twice: activation checkpointing.

Source: Chen et al. 2016, arXiv 1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(network: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Compute function(x), of which only `x` is kept until the backward pass computes it again,
    with the same dropout. `function` runs modules of `network`."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _still_norms(network)

    result: Tensor = checkpoint(function, x, use_reentrant=False, context_fn=contexts)
    return result


@contextmanager
def _still_norms(network: nn.Module) -> Iterator[None]:
    """Keep batch norms from counting the same images again, the second time.

    Without tracking they would keep other tensors for the gradient than the first time, and torch
    compares; so they track with momentum 0.
    """
    before = [
        (module, module.momentum, module.num_batches_tracked)
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    for module, _momentum, _count in before:
        module.momentum, module.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for module, momentum, count in before:
            module.momentum, module.num_batches_tracked = momentum, count
