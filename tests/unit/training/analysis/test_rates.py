"""Summed and mean loss are one recipe in two notations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from training.analysis.rates import SgdRates, equivalent_momentum
from training.losses import Reduction, cross_entropy

HEIGHT, WIDTH, VOID_ROWS = 6, 5, 2
PIXELS = (HEIGHT - VOID_ROWS) * WIDTH
HEAVY = SgdRates(lr=1e-3, momentum=0.9, weight_decay=2.0)
"""Rates for a sum; the decay is large enough to matter in a few steps."""


def trained(rates: SgdRates, reduction: Reduction) -> Tensor:
    """The weight, float64 [3,4,1,1], after six steps, one image each."""
    torch.manual_seed(5)
    score = nn.Conv2d(4, 3, 1, bias=False).double()
    optimizer = torch.optim.SGD(
        score.parameters(), rates.lr, rates.momentum, weight_decay=rates.weight_decay
    )
    for _ in range(6):
        target = torch.randint(0, 3, (1, HEIGHT, WIDTH))
        target[:, :VOID_ROWS] = 255
        loss = cross_entropy(
            score(torch.randn(1, 4, HEIGHT, WIDTH).double()), target, None, reduction
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return score.weight.detach()


def test_the_same_weights_step_by_step() -> None:
    summed = trained(HEAVY, "sum")
    torch.testing.assert_close(trained(HEAVY.of_mean(PIXELS), "mean"), summed, rtol=1e-5, atol=1e-7)


def test_the_decay_must_shrink_as_the_rate_grows() -> None:
    """Void pixels do not count either: the rate of all pixels would be another."""
    summed = trained(HEAVY, "sum")
    converted = HEAVY.of_mean(PIXELS)
    undivided = SgdRates(converted.lr, converted.momentum, HEAVY.weight_decay)
    assert not torch.allclose(trained(undivided, "mean"), summed, rtol=1e-2)
    assert not torch.allclose(trained(HEAVY.of_mean(HEIGHT * WIDTH), "mean"), summed, rtol=1e-2)


def test_the_papers_heavy_rates_are_ordinary_ones_of_the_mean() -> None:
    """1e-10 on 500x375 pixels at momentum 0.99, against the light 1e-4 at 0.9."""
    heavy = SgdRates(lr=1e-10, momentum=0.99, weight_decay=5e-4)
    mean = heavy.of_mean(500 * 375)
    assert mean.lr == pytest.approx(1.875e-5)
    assert mean.effective_lr == pytest.approx(1.875e-3)
    assert SgdRates(1e-4, 0.9, 5e-4).effective_lr == pytest.approx(1e-3)
    assert mean.weight_decay == pytest.approx(2.667e-9, rel=1e-3)
    # Decay a step: the same 5e-14 in both notations.
    assert mean.lr * mean.weight_decay == pytest.approx(heavy.lr * heavy.weight_decay)
    assert heavy.lr * heavy.weight_decay == pytest.approx(5e-14)


def test_momentum_of_one_image_for_that_of_twenty() -> None:
    assert equivalent_momentum(0.9, 20) == pytest.approx(0.9947, abs=5e-5)
    assert equivalent_momentum(0.9, 20) ** 20 == pytest.approx(0.9)
    assert equivalent_momentum(0.9, 1) == 0.9
