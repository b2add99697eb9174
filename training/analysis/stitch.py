"""Computes dense scores from a coarse network without upsampling, in two ways that agree.

A network of stride f answers for every f-th pixel. Section 3.2 of the paper (arXiv 1411.4038)
explains, and then does not use, two ways to have all of them:

- shift-and-stitch: run it on the f * f shifts of the image and interlace the answers;
- filter rarefaction, or 'a trous': run it once with its strides taken out and its later filters
  spread by them, f'_ij = f_(i/s,j/s) where s divides i and j, else 0. That is dilation by s.

They agree where no window reaches beyond the image. A layer with padding sees zeros at another
distance in every shift, so padded layers are refused rather than answered almost right.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

from torch import Tensor, nn

_POINTWISE = (nn.ReLU, nn.Identity, nn.Dropout, nn.BatchNorm2d)


def shift_and_stitch(network: Callable[[Tensor], Tensor], images: Tensor, stride: int) -> Tensor:
    """Answer for every place where a window of the network fits: [N,C,H,W] -> [N,D,h,w].

    `network`: of that stride and without padding, so that cell i of its answer belongs to the
    window that starts at pixel stride * i. It runs on stride * stride shifts, which move the image
    up and left; answer (i, j) of shift (y, x) goes to (stride * i + y, stride * j + x).
    Raises: ValueError if `stride` < 1, if the image is smaller, or if the answers cannot be
    interlaced, as when `stride` is too large (too small a one need not show); and what `network`
    raises if its window does not fit into the last shift.
    """
    if stride < 1:
        raise ValueError(f"stride {stride}: want 1 or more")
    height, width = images.shape[2:]
    if min(height, width) < stride:
        raise ValueError(f"an image of {height}x{width} has no {stride} shifts")
    answers = [[network(images[:, :, y:, x:]) for x in range(stride)] for y in range(stride)]
    rows = sum(row[0].shape[2] for row in answers)
    columns = sum(answer.shape[3] for answer in answers[0])
    first = answers[0][0]
    stitched = first.new_empty(*first.shape[:2], rows, columns)
    for y, row in enumerate(answers):
        for x, answer in enumerate(row):
            place = stitched[:, :, y::stride, x::stride]
            if place.shape != answer.shape:
                raise ValueError(
                    f"shift ({y}, {x}) answers {tuple(answer.shape[2:])} where "
                    f"{tuple(place.shape[2:])} fit: is {stride} the network's stride, and has it "
                    "no padding?"
                )
            place.copy_(answer)
    return stitched


def rarefied(network: nn.Sequential) -> nn.Sequential:
    """Copy a plain chain of layers with stride 1 throughout: windows that followed a stride of s
    are dilated by s. Same weights, same receptive field, an answer for every pixel.

    Raises: ValueError naming a layer that is padded or of a kind whose windows are not known.
    """
    dilation = 1
    layers = []
    for name, layer in network.named_children():
        copied = deepcopy(layer)
        if isinstance(copied, nn.Conv2d | nn.MaxPool2d):
            _want_valid(name, copied)
            stride = _one(name, "stride", copied.stride)
            copied.dilation = _pair(dilation * _one(name, "dilation", copied.dilation))
            copied.stride = _pair(1)
            dilation *= stride
        elif not isinstance(copied, _POINTWISE):
            raise ValueError(f"{name}: cannot rarefy a {type(layer).__name__}")
        layers.append(copied)
    return nn.Sequential(*layers)


def rarefy(weight: Tensor, stride: int) -> Tensor:
    """Put zeros between the taps: [O,I,kh,kw] -> [O,I,s*(kh-1)+1,s*(kw-1)+1].

    Convolving with it is convolving with `weight` at dilation `stride`.
    Raises: ValueError if `stride` < 1.
    """
    if stride < 1:
        raise ValueError(f"stride {stride}: want 1 or more")
    height, width = (stride * (side - 1) + 1 for side in weight.shape[2:])
    spread = weight.new_zeros(*weight.shape[:2], height, width)
    spread[:, :, ::stride, ::stride] = weight
    return spread


def _want_valid(name: str, layer: nn.Conv2d | nn.MaxPool2d) -> None:
    if layer.padding not in (0, (0, 0), "valid"):
        raise ValueError(f"{name} pads by {layer.padding}: the two ways differ at the border")
    if isinstance(layer, nn.MaxPool2d) and layer.ceil_mode:
        raise ValueError(f"{name} pools in ceil mode: its last windows reach beyond the map")


def _one(name: str, what: str, value: object) -> int:
    """Read the number that `value`, a number or a pair, gives for both axes."""
    sides = set(value) if isinstance(value, tuple) else {value}
    (side, *others) = sides
    if others or not isinstance(side, int):
        raise ValueError(f"{name}: {what} {value} differs between the axes")
    return side


def _pair(value: int) -> tuple[int, int]:
    return value, value
