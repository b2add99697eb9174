"""Finds batch norms beside their convolutions, folds them, and measures them anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.hooks import RemovableHandle


class Pair(NamedTuple):
    """Holds a convolution and the batch norm right after it among the children of one module."""

    owner: nn.Module
    conv_name: str
    norm_name: str
    conv: nn.Conv2d
    norm: nn.BatchNorm2d


def norm_pairs(network: nn.Module) -> Iterator[Pair]:
    """Yield every convolution of `network` that a batch norm follows, in order."""
    for owner in network.modules():
        children = list(owner.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                yield Pair(owner, conv_name, norm_name, conv, norm)


def fold_norms(network: nn.Module) -> None:
    """Put batch norms into the convolutions before them; the network is for inference then."""
    for pair in list(norm_pairs(network)):
        pair.owner.add_module(pair.conv_name, fuse_conv_bn_eval(pair.conv, pair.norm))
        pair.owner.add_module(pair.norm_name, nn.Identity())


@torch.no_grad()
def make_identity(norm: nn.BatchNorm2d) -> None:
    """Make a norm give what it is given, with the running statistics of a new one."""
    norm.reset_running_stats()
    norm.weight.fill_((1 + norm.eps) ** 0.5)
    norm.bias.zero_()


@torch.no_grad()
def restore(network: nn.Module, pairs: Sequence[Pair], batches: Iterable[Tensor]) -> None:
    """Give each norm the mean and variance its convolution has on `batches`.

    Scale and shift are set so that the layer's function stays what it was. `batches`: what
    `network` takes. Raises: ValueError if there are none.
    """
    moments = [_Moments(pair.conv.out_channels) for pair in pairs]
    hooks = [
        pair.conv.register_forward_hook(lambda _module, _inputs, output, own=own: own.add(output))
        for pair, own in zip(pairs, moments, strict=True)
    ]
    _run(network, batches, hooks)
    found = [own.finish() for own in moments]  # all, before a norm is changed
    for pair, (mean, variance) in zip(pairs, found, strict=True):
        _restate(pair.norm, mean, variance)


@torch.no_grad()
def measure(
    network: nn.Module,
    batches: Iterable[Tensor],
    everywhere: Callable[[Tensor], Tensor] = lambda own: own,
) -> None:
    """Give each norm the statistics of what it is given over all of `batches`.

    The layers before it normalise each batch by its own statistics meanwhile, as in training; the
    larger the batches, the nearer is that to what they will do. `batches`: what `network` takes.
    `everywhere`: from a sum over this process's batches to that over all. Raises: ValueError if
    there are none.
    Source: Wu, Johnson 2021, arXiv 2105.07576, section 3 ("PreciseBN").
    """
    norms = [each for each in network.modules() if isinstance(each, nn.BatchNorm2d)]
    moments = [_Moments(norm.num_features) for norm in norms]
    hooks = [
        norm.register_forward_pre_hook(lambda _module, inputs, own=own: own.add(inputs[0]))
        for norm, own in zip(norms, moments, strict=True)
    ]
    _run(network, batches, hooks, in_training=norms)
    for norm, own in zip(norms, moments, strict=True):
        mean, variance = own.finish(everywhere)
        if norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)


def _run(
    network: nn.Module,
    batches: Iterable[Tensor],
    hooks: Sequence[RemovableHandle],
    in_training: Sequence[nn.Module] = (),
) -> None:
    """Run the network in eval mode, but for `in_training`, and give it back without the hooks."""
    training = {module: module.training for module in network.modules()}
    network.eval()
    for module in in_training:
        module.train()
    try:
        for images in batches:
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
        for module, was in training.items():
            module.training = was


def _restate(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Give the norm these statistics, float32 [C], and the scale and shift that undo them."""
    old_mean, old_variance = norm.running_mean, norm.running_var
    if old_mean is None or old_variance is None:
        raise ValueError("the norm keeps no running statistics")
    scale = norm.weight / (old_variance + norm.eps).sqrt()
    norm.bias.add_(scale * (mean - old_mean))
    norm.weight.copy_(scale * (variance + norm.eps).sqrt())
    old_mean.copy_(mean)
    old_variance.copy_(variance)


class _Moments:
    """Adds up the mean and variance of each channel of [N,C,h,w] maps, in float64."""

    def __init__(self, channels: int) -> None:
        self._sums = torch.zeros(1 + 2 * channels, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        x = x.double()
        count = x.new_tensor([x.numel() // x.shape[1]])
        sums = torch.cat([count, x.sum(dim=(0, 2, 3)), x.square().sum(dim=(0, 2, 3))])
        self._sums = self._sums.to(x.device) + sums

    def finish(
        self, everywhere: Callable[[Tensor], Tensor] = lambda own: own
    ) -> tuple[Tensor, Tensor]:
        """Give mean and variance, float32 [C]. Raises ValueError if nothing was added."""
        sums = everywhere(self._sums)
        if not sums[0]:
            raise ValueError("norms need at least one batch of images to be measured on")
        means = sums[1:] / sums[0]
        mean, squares = means.chunk(2)
        return mean.float(), (squares - mean.square()).clamp(min=0).float()
