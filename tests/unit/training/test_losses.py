"""Losses against definitions written out pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from training.losses import cross_entropy, inverse_log_weights, soft_dice

VOID = 255
WEIGHTS = torch.tensor([0.5, 1.0, 3.0])


def batch(*, void: bool = True) -> tuple[Tensor, Tensor]:
    """Logits float [2,3,4,5] and targets uint8 [2,4,5] with a few void pixels."""
    generator = torch.Generator().manual_seed(7)
    logits = 3 * torch.randn(2, 3, 4, 5, generator=generator)
    target = torch.randint(0, 3, (2, 4, 5), generator=generator).to(torch.uint8)
    if void:
        target[0, :2, 1] = VOID
        target[1, 3] = VOID
    return logits, target


def labelled_pixels(logits: Tensor, target: Tensor) -> list[tuple[Tensor, int]]:
    """(logits float [C], class) of each pixel that is not void."""
    columns = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
    return [
        (column, int(label))
        for column, label in zip(columns, target.flatten(), strict=True)
        if label != VOID
    ]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_mean_is_over_labelled_pixels(weights: Tensor | None) -> None:
    logits, target = batch()
    total = mass = 0.0
    for column, label in labelled_pixels(logits, target):
        weight = 1.0 if weights is None else float(weights[label])
        total += weight * float(torch.logsumexp(column, 0) - column[label])
        mass += weight
    assert float(cross_entropy(logits, target, weights)) == pytest.approx(total / mass, rel=1e-5)


@pytest.mark.parametrize("loss", [cross_entropy, soft_dice])
def test_void_pixels_do_not_matter(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits, target = batch()
    changed = logits.clone()
    changed.permute(0, 2, 3, 1)[target == VOID] = 100 * torch.randn(3)
    assert float(loss(changed, target)) == pytest.approx(float(loss(logits, target)), rel=1e-5)


def test_scale_of_the_weights_does_not_matter() -> None:
    logits, target = batch()
    once, tenfold = (cross_entropy(logits, target, scale * WEIGHTS) for scale in (1, 10))
    assert float(tenfold) == pytest.approx(float(once), rel=1e-5)


def test_sum_is_mean_times_labelled_pixels() -> None:
    logits, target = batch()
    mean = cross_entropy(logits, target)
    total = cross_entropy(logits, target, reduction="sum")
    labelled = int((target != VOID).sum())
    assert float(total) == pytest.approx(float(mean) * labelled, rel=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_all_void_gives_zero_and_a_finite_gradient(weights: Tensor | None) -> None:
    logits, target = batch()
    logits.requires_grad_()
    target.fill_(VOID)
    loss = cross_entropy(logits, target, weights) + soft_dice(logits, target)
    assert float(loss.detach()) == 0
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.eq(0).all()


def test_bf16_logits_are_summed_in_fp32() -> None:
    logits, target = batch()
    low = logits.bfloat16()
    assert cross_entropy(low, target).dtype == torch.float32
    assert float(cross_entropy(low, target)) == float(cross_entropy(low.float(), target))


@pytest.mark.parametrize("void", [False, True])
def test_dice_against_one_hot(void: bool) -> None:
    logits, target = batch(void=void)
    target[target == 2] = 1  # class 2 is absent: predicted mass there must not count
    valid = (target != VOID)[:, None]
    one_hot = torch.nn.functional.one_hot(target.long().clamp(max=2), 3).permute(0, 3, 1, 2)
    truth, guess = one_hot * valid, logits.softmax(1) * valid
    dices = [
        2 * float((truth[:, c] * guess[:, c]).sum()) / float((truth[:, c] + guess[:, c]).sum())
        for c in (0, 1)
    ]
    assert float(soft_dice(logits, target)) == pytest.approx(1 - sum(dices) / 2, rel=1e-5)


def test_dice_of_a_perfect_answer_is_zero() -> None:
    _, target = batch(void=False)
    sure = 100.0 * torch.nn.functional.one_hot(target.long(), 3).permute(0, 3, 1, 2)
    assert float(soft_dice(sure, target)) == pytest.approx(0, abs=1e-5)


def test_weights_fall_with_frequency() -> None:
    frequencies = np.array([0.7, 0.3, 0.0])
    weights = inverse_log_weights(frequencies, 1.02)
    raw = 1 / np.log(1.02 + frequencies)
    assert weights.numpy() == pytest.approx(raw / raw.mean(), rel=1e-6)
    assert float(weights.mean()) == pytest.approx(1)


def test_an_offset_of_one_would_be_infinite() -> None:
    with pytest.raises(ValueError, match="more than 1"):
        inverse_log_weights(np.array([0.5, 0.5]), 1.0)
