"""Convolutions with fewer multiplications, for layers of many channels: Winograd's F(2x2,3x3).

Two neighbouring outputs of a filter with three taps take four products in place of six, of sums and
differences of the inputs; in two dimensions 16 in place of 36. A kernel of 7 is made of such
filters: taps 0 to 2, tap 3 and taps 4 to 6 begin an even number of cells apart, so that they share
the transformed input, and a lone tap in the middle of its filter needs two of the four products.
That makes 10 products in place of 14 along an axis, 100 in place of 196 for 2x2 outputs.

In 8 bits the sums get ranges of their own, so that little is lost. Whether it is faster is another
matter: the sums must be cheap beside the products, as they are with many channels (bench/LOG.md).

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308,
section 4.1, whose letters the transforms have here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

_B = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
"""Four inputs -> the sums that the four products take."""

_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
"""Taps of a filter -> its four products' weights."""

_A = ((1, 1, 1, 0), (0, 1, -1, -1))
"""The two outputs as sums of the products."""


class WinogradError(ValueError):
    """A layer cannot be computed like this; the message says why."""


class WinogradConv2d(nn.Module):
    """Computes what the convolution `conv` does, up to rounding.

    Square kernels of 3, 7, 11, ... taps, stride 1, no dilation, one group. Raises: WinogradError.
    """

    bias: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        sides = conv.kernel_size
        plain = set(conv.stride) == {1} and set(conv.dilation) == {1} and conv.groups == 1
        if not plain or isinstance(conv.padding, str) or len({*sides}) > 1 or sides[0] % 4 != 3:
            raise WinogradError(
                f"its kernel is {sides[0]}x{sides[1]}: Winograd's form is for square kernels of 3, "
                "7 or 11 taps, with stride 1, no dilation and one group"
            )
        self.kernel, self.padding = sides[0], conv.padding
        taps = conv.weight.detach().double().numpy()
        self.dilations: dict[tuple[int, int], tuple[int, int]] = {}
        for rows, columns in product(range(4), range(4)):
            summed = torch.from_numpy(np.outer(_B[rows], _B[columns]))
            weight, self.dilations[rows, columns] = _product_weight(taps, rows, columns)
            self.register_buffer(
                f"sum_{rows}{columns}", summed.repeat(conv.in_channels, 1, 1, 1).contiguous()
            )
            self.register_buffer(f"product_{rows}{columns}", torch.from_numpy(weight))
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().clone()
        self.register_buffer("bias", bias.view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        down, right = self.padding
        height, width = (
            side + 2 * pad - self.kernel + 1
            for side, pad in zip(x.shape[2:], self.padding, strict=True)
        )
        # A row more, which an odd number of rows needs to fill its last tile.
        padded = functional.pad(x, (right, right + 1, down, down + 1))
        products = {at: self._product(padded, at) for at in self.dilations}
        halves = {
            (above, columns): _signed_sum([products[r, columns] for r in range(4)], above)
            for above, columns in product(range(2), range(4))
        }
        phases = [
            _signed_sum([halves[above, c] for c in range(4)], left)
            for above, left in product(range(2), range(2))
        ]
        cells = functional.pixel_shuffle(torch.stack(phases, dim=2).flatten(1, 2), 2)
        return cells[:, :, :height, :width] + self.bias

    def _product(self, padded: Tensor, at: tuple[int, int]) -> Tensor:
        rows, columns = at
        summed = functional.conv2d(
            padded,
            self.get_buffer(f"sum_{rows}{columns}"),
            stride=2,
            groups=padded.shape[1],
        )
        weight = self.get_buffer(f"product_{rows}{columns}")
        return functional.conv2d(summed, weight, dilation=self.dilations[at])


def use_winograd(network: nn.Module, layers: Sequence[str]) -> None:
    """Replace these layers, named as `fcn quantize` lists them, by their Winograd form.

    Raises: WinogradError naming a layer that is unknown or cannot be computed so.
    """
    convolutions = {
        path.removesuffix(".conv"): path
        for path, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    for layer in layers:
        if layer not in convolutions:
            raise WinogradError(
                f"there is no layer {layer!r}: choose from {', '.join(convolutions)}"
            )
        parent, _, name = convolutions[layer].rpartition(".")
        owner = network.get_submodule(parent)
        conv = owner.get_submodule(name)
        try:
            form = WinogradConv2d(conv)  # type: ignore[arg-type]
        except WinogradError as error:
            raise WinogradError(f"layer {layer}: {error}") from error
        owner.add_module(name, form)


def _product_weight(
    taps: np.ndarray, rows: int, columns: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """Makes the weights [outputs,inputs,a,b] of one of the 16 products over the tiles, and the
    dilations."""
    found = taps
    dilations = []
    for axis, place in ((2, rows), (3, columns)):
        parts = []
        for tile in range((taps.shape[axis] - 1) // 2):
            part = np.take(found, range(2 * tile, 2 * tile + 3), axis)
            factors = _G[place]
            if tile % 2:  # its outer taps are its neighbours'
                factors = factors * [0, 1, 0]
            if factors.any():
                parts.append(np.tensordot(part, factors, (axis, 0)))
        lone_needed = place in (1, 2)
        dilations.append(1 if lone_needed or len(parts) == 1 else 2)
        found = np.stack(parts, axis)
    return np.ascontiguousarray(found, np.float32), (dilations[0], dilations[1])


def _signed_sum(parts: Sequence[Tensor], which: int) -> Tensor:
    """Adds the four parts along one axis as output `which` takes them; its first sign is +."""
    chosen = [(part, sign) for part, sign in zip(parts, _A[which], strict=True) if sign]
    total = chosen[0][0]
    for part, sign in chosen[1:]:
        total = total + part if sign > 0 else total - part
    return total
