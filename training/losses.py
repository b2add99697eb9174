"""Computes the loss of a step, from the per-pixel losses it is made of.

Void pixels take no part, neither in the sum nor in what it is divided by. All are computed in
float32, whatever the logits are. The paper's summed loss makes that a must: its 187,500 pixels of
500x375 start at ln 21 = 3 each, 571,000 in all, and float16 ends at 65,504. A gradient summed over
as many pixels, and a rate of 1e-10 (the smallest float16 is 6e-8), have the same trouble further
down, so training offers bf16 and fp32 and no fp16.

Nothing here makes the CPU wait for a GPU: no size or branch depends on a value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from model.heads import HeadSizes, split
from training.datasets.base import VOID
from training.distributed import SINGLE, World

Reduction = Literal["mean", "sum"]


class LossConfig(BaseModel):
    """Holds the section `loss` of a config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reduction: Reduction = "mean"
    class_weight_offset: float | None = Field(None, gt=1)
    """Weights 1 / ln(offset + class frequency); None: no weights."""
    dice: float = Field(0.0, ge=0)
    """Weight of the soft Dice loss added to the cross entropy."""
    sample: float = Field(1.0, gt=0, le=1)
    """Share of the cells that the cross entropy is taken of, see `sample_cells`."""
    sample_cell_px: int = Field(32, ge=1)
    """Side of such a cell."""


def heads_loss(
    logits: Tensor,
    target: Tensor,
    heads: HeadSizes,
    config: LossConfig,
    class_weights: Tensor | None,
    normaliser: Tensor,
    world: World = SINGLE,
) -> Tensor:
    """Sum `batch_loss` over the heads, which thus weigh the same; targets [N,h,w], of K > 1 heads
    [N,h,w,K]."""
    if len(heads) == 1:
        return batch_loss(logits, target, config, class_weights, normaliser, world)
    losses = [
        batch_loss(own, target[..., index], config, class_weights, normaliser, world)
        for index, own in enumerate(split(logits, heads).values())
    ]
    return torch.stack(losses).sum()


def batch_loss(
    logits: Tensor,
    target: Tensor,
    config: LossConfig,
    class_weights: Tensor | None,
    normaliser: Tensor,
    world: World = SINGLE,
) -> Tensor:
    """Compute this batch's and process's part of the step's loss; scalar, float32.

    Shapes as in `cross_entropy`. `normaliser`: `labelled_weight` summed over the whole step. The
    parts of all batches and processes sum to the loss, and their gradients to its gradient.

    With `sample` below 1 the cross entropy is that of the cells that `sample_cells` keeps: patches
    drawn from whole images. `mean` then divides by `sample` times the weight of all labelled
    pixels, not by what happened to be kept, so its expectation is that of the whole images,
    exactly. The expectation of `sum` is `sample` times the whole, which the paper makes up for
    with 1/sample times as many images in a batch. (For `mean` that larger batch only keeps the
    noise the same.)
    Source: arXiv 1411.4038, section 4.4.
    """
    kept = target
    if config.sample < 1:
        kept = sample_cells(target, config.sample, config.sample_cell_px)
    loss = cross_entropy(logits, kept, class_weights, "sum")
    if config.reduction == "mean":
        loss = loss / (config.sample * normaliser).to(loss.dtype)
    if config.dice:
        dice = config.dice * soft_dice(logits, target, world.sum_with_own_gradient)
        # Every process has the whole value, but only its own part of the gradient.
        loss = loss + dice - dice.detach() * (1 - 1 / world.size)
    return loss


def cross_entropy(
    logits: Tensor, target: Tensor, weights: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Compute the multinomial log loss; scalar, float32.

    logits: float [N,C,H,W]; target: integer [N,H,W], VOID ignored; weights: float [C] or None.
    `mean` divides by the summed weight of the labelled pixels (their number without weights), so
    that neither void pixels nor the weights' scale change the step. A batch without a labelled
    pixel gives 0, not NaN. `sum` is the paper's unnormalised loss (section 4.3).
    """
    target = target.long()
    # float32: the sum of a whole image's losses overflows float16, and bf16 has 8 bits.
    total = functional.cross_entropy(
        logits.float(), target, weight=weights, ignore_index=VOID, reduction="sum"
    )
    if reduction == "sum":
        return total
    return total / labelled_weight([target], weights).to(total.dtype)


def labelled_weight(targets: Sequence[Tensor], weights: Tensor | None = None) -> Tensor:
    """Sum the weight of the labelled pixels (their number without weights); scalar, float64, on the
    targets' device, above 0 so that it can divide.

    targets: integer [N,H,W] each; weights: float [C] or None.
    """
    if weights is None:
        sums = [(target != VOID).sum(dtype=torch.float64) for target in targets]
    else:
        table = functional.pad(weights.double(), (0, VOID + 1 - len(weights)))
        sums = [table[target.long()].sum() for target in targets]
    return torch.stack(sums).sum().clamp(min=torch.finfo(torch.float32).tiny)


def sample_cells(target: Tensor, keep: float, cell_px: int) -> Tensor:
    """Put VOID into every cell of integer [N,H,W] that is not kept.

    Cells are `cell_px` pixels square, from the top left, as the final layer's cells of a 'same'
    network lie; each is kept with probability `keep`, on its own, by torch's random numbers. The
    cells do not move: that every patch can come up is left to random crops (footnote 2).
    Raises: ValueError unless 0 < keep <= 1 and cell_px >= 1.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep {keep}: want 0 < keep <= 1")
    if cell_px < 1:
        raise ValueError(f"cell_px {cell_px}: want 1 or more")
    count, height, width = target.shape
    rows, columns = -(-height // cell_px), -(-width // cell_px)
    kept = torch.rand(count, rows, columns, device=target.device) < keep
    pixels = kept.repeat_interleave(cell_px, 1).repeat_interleave(cell_px, 2)
    return target.masked_fill(~pixels[:, :height, :width], VOID)


def soft_dice(
    logits: Tensor, target: Tensor, everywhere: Callable[[Tensor], Tensor] = lambda own: own
) -> Tensor:
    """Compute 1 - mean Dice over the classes present in the batch; scalar, float32.

    Shapes as in `cross_entropy`. Counts every class alike, as mean IU does. A batch without a
    labelled pixel gives 0. `everywhere`: from a sum over this part of the batch to that over all.
    Source: Milletari, Navab, Ahmadi 2016, arXiv 1606.04797, summed over the batch.
    """
    num_classes = logits.shape[1]
    valid = target != VOID
    safe = target.masked_fill(~valid, 0).long()
    probabilities = logits.float().softmax(dim=1)
    # Gathering the true class's probability needs no one-hot copy of the target, which would be
    # the largest tensor of the step.
    right = probabilities.gather(1, safe[:, None])[:, 0] * valid
    overlap = everywhere(right.new_zeros(num_classes).index_add(0, safe.flatten(), right.flatten()))
    counts = torch.zeros(num_classes, dtype=torch.int64, device=target.device)
    labelled = everywhere(counts.index_add(0, safe.flatten(), valid.flatten().long()))
    predicted = everywhere((probabilities * valid[:, None]).sum(dim=(0, 2, 3)))
    dice = 2 * overlap / (predicted + labelled).clamp(min=1)
    present = labelled > 0
    mean = (dice * present).sum() / present.sum().clamp(min=1)
    return (1 - mean) * present.any()


def distillation(
    logits: Tensor, teacher_logits: Tensor, target: Tensor, temperature: float
) -> Tensor:
    """Sum the divergence of the network's classes from its teacher's over the labelled pixels;
    scalar, float32, 0 where both say the same.

    Shapes as in `cross_entropy`. Both logits are divided by `temperature`, and the sum multiplied
    by its square, so that gradients keep their size. Void pixels count nothing here either: of
    those beyond an image's edge no teacher knows anything.
    Source: Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2.
    """
    own = (logits.float() / temperature).log_softmax(dim=1)
    wanted = (teacher_logits.float() / temperature).log_softmax(dim=1)
    by_pixel = (wanted.exp() * (wanted - own)).sum(dim=1)
    return temperature**2 * by_pixel.masked_fill(target == VOID, 0).sum()


def map_distillation(logits: Tensor, maps: Tensor, target: Tensor) -> Tensor:
    """Sum the cross entropy of the network's classes with a teacher's maps over the labelled
    pixels; scalar, float32.

    Shapes as in `cross_entropy`; maps: uint8 [N,H,W,C], probabilities in 255ths. What a map lacks
    of 255 counts for no class, so a pixel of which the teacher says little weighs little.
    """
    own = logits.float().log_softmax(dim=1)
    by_pixel = -(own * maps.permute(0, 3, 1, 2)).sum(dim=1) / 255
    return by_pixel.masked_fill(target == VOID, 0).sum()


def inverse_log_weights(frequencies: npt.NDArray[np.float64], offset: float) -> Tensor:
    """Compute 1 / ln(offset + share of the class), scaled to mean 1; float32 [C].

    Source: Paszke et al. 2016 (ENet), arXiv 1606.02147 section 5.1, with offset 1.02.
    Raises: ValueError unless offset > 1 (a rare class's weight would be negative or infinite).
    """
    if offset <= 1:
        raise ValueError(f"class weight offset {offset}: want more than 1")
    weights = 1 / np.log(offset + frequencies)
    return torch.from_numpy(weights / weights.mean()).float()
