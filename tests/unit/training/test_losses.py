"""Losses against definitions written out pixel by pixel."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.losses import (
    LossConfig,
    Reduction,
    batch_loss,
    cross_entropy,
    inverse_log_weights,
    labelled_weight,
    sample_cells,
    soft_dice,
)

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


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
def test_a_whole_image_summed_under_autocast(low: torch.dtype) -> None:
    """500x500 pixels, 21 classes, logits of low precision: the sum and the score layer's gradient
    are those of float32, to the precision of the logits."""
    torch.manual_seed(0)
    features = torch.randn(1, 8, 500, 500)
    target = torch.randint(0, 21, (1, 500, 500))
    score = nn.Conv2d(8, 21, 1)
    losses, gradients = [], []
    for enabled in (False, True):
        score.zero_grad()
        with torch.autocast("cpu", low, enabled=enabled):
            logits = score(features)
            assert logits.dtype == (low if enabled else torch.float32)
            loss = cross_entropy(logits, target, reduction="sum")
        assert loss.dtype == torch.float32
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        assert score.weight.grad is not None
        gradients.append(score.weight.grad.clone())
    assert losses[0] > torch.finfo(torch.float16).max
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert gradients[1].isfinite().all()
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.05, atol=0.01 * 250_000**0.5)


def test_sampled_cells_are_whole_and_aligned_top_left() -> None:
    torch.manual_seed(0)
    target = torch.ones(3, 7, 11, dtype=torch.uint8)
    target[:, 0, 0] = VOID
    kept = sample_cells(target, 0.5, 4)
    assert (kept.shape, kept.dtype) == (target.shape, target.dtype)
    kinds = set()
    for image in range(3):
        for top in (0, 4):
            for left in (0, 4, 8):
                cell = kept[image, top : top + 4, left : left + 4].flatten()
                (value,) = set((cell[1:] if top == left == 0 else cell).tolist())
                kinds.add(value)
    assert kinds == {1, VOID}
    assert kept[:, 0, 0].eq(VOID).all()
    assert not torch.equal(kept[0], kept[1])


def test_every_cell_is_kept_as_often_as_asked() -> None:
    torch.manual_seed(1)
    target = torch.zeros(4000, 5, 6, dtype=torch.uint8)
    kept = (sample_cells(target, 0.3, 3) != VOID).float().mean(dim=0)
    assert kept.numpy() == pytest.approx(np.full((5, 6), 0.3), abs=0.03)  # 4 standard deviations


def loss_of(
    logits: Tensor, target: Tensor, weights: Tensor | None, **config: float | str
) -> Tensor:
    """Compute what training minimises where a step is this batch alone."""
    fields = LossConfig.model_validate(config)
    return batch_loss(logits, target, fields, weights, labelled_weight([target], weights))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_keeping_all_is_the_plain_loss(reduction: Reduction) -> None:
    logits, target = batch()
    assert torch.equal(sample_cells(target, 1.0, 2), target)
    got = loss_of(logits, target, WEIGHTS, reduction=reduction)
    wanted = cross_entropy(logits, target, WEIGHTS, reduction)
    assert got.dtype == torch.float32
    assert float(got) == pytest.approx(float(wanted), rel=1e-6)


def test_dice_is_added_by_its_weight() -> None:
    logits, target = batch()
    got = loss_of(logits, target, WEIGHTS, dice=0.5)
    wanted = cross_entropy(logits, target, WEIGHTS) + 0.5 * soft_dice(logits, target)
    assert float(got) == pytest.approx(float(wanted), rel=1e-6)


def test_labelled_weight_counts_what_is_labelled() -> None:
    _, target = batch()
    labelled = target[target != VOID].long()
    assert float(labelled_weight([target])) == len(labelled)
    assert float(labelled_weight([target, target], WEIGHTS)) == pytest.approx(
        2 * float(WEIGHTS[labelled].sum())
    )
    assert 0 < float(labelled_weight([torch.full_like(target, VOID)], WEIGHTS)) < 1e-30


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize(("reduction", "share"), [("mean", 1.0), ("sum", 0.25)])
def test_expectation_over_every_choice(
    monkeypatch: pytest.MonkeyPatch,
    weights: Tensor | None,
    reduction: Reduction,
    share: float,
) -> None:
    """Not a sample of samples: all 2^4 ways to keep the four cells, each with its probability.

    Loss and gradient are those of the whole image for the mean, and a quarter of them for the sum,
    which four times the images make up for.
    """
    logits, target = (part[:1].clone() for part in batch())
    logits = logits.double().requires_grad_()
    whole = cross_entropy(logits, target, weights, reduction)
    (whole_gradient,) = torch.autograd.grad(whole, logits)
    expected, gradient = 0.0, torch.zeros_like(logits)
    for choice in itertools.product([True, False], repeat=4):
        draws = torch.where(torch.tensor(choice), 0.0, 0.9).view(1, 2, 2)
        monkeypatch.setattr(torch, "rand", lambda *_, draws=draws, **__: draws)
        loss = loss_of(logits, target, weights, sample=0.25, sample_cell_px=3, reduction=reduction)
        probability = 0.25 ** sum(choice) * 0.75 ** (4 - sum(choice))
        expected += probability * float(loss.detach())
        gradient += probability * torch.autograd.grad(loss, logits)[0]
    assert expected == pytest.approx(share * float(whole.detach()), rel=1e-6)
    torch.testing.assert_close(gradient, share * whole_gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_sampling_nothing_labelled_gives_zero(reduction: Reduction) -> None:
    logits, target = batch()
    target.fill_(VOID)
    loss = loss_of(logits, target, None, sample=0.5, sample_cell_px=2, reduction=reduction)
    assert float(loss) == 0


@pytest.mark.parametrize(
    ("keep", "cell_px", "complaint"),
    [(0.0, 1, "keep 0"), (1.5, 1, "keep 1.5"), (0.5, 0, "cell_px 0")],
)
def test_sampling_that_means_nothing(keep: float, cell_px: int, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        sample_cells(torch.zeros(1, 2, 2), keep, cell_px)


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


def test_weights_fall_with_frequency() -> None:
    frequencies = np.array([0.7, 0.3, 0.0])
    weights = inverse_log_weights(frequencies, 1.02)
    raw = 1 / np.log(1.02 + frequencies)
    assert weights.numpy() == pytest.approx(raw / raw.mean(), rel=1e-6)
    assert float(weights.mean()) == pytest.approx(1)


def test_an_offset_of_one_would_be_infinite() -> None:
    with pytest.raises(ValueError, match="more than 1"):
        inverse_log_weights(np.array([0.5, 0.5]), 1.0)
