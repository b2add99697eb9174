"""The paper's upsampling against bilinear interpolation written out by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from model.upsample import BilinearUpsample

FACTORS = (2, 8, 16, 32)


def interpolated(cells: npt.NDArray[np.float64], kernel: int, factor: int) -> npt.ArrayLike:
    """1-D: pixel p sums the cells by a triangle of half-width `reach` about the cell's centre.

    Cell i's centre is at factor * i + (kernel - 1) / 2; beyond the map there are zeros.
    """
    reach = (kernel + 1) // 2
    pixels = np.arange(factor * (len(cells) - 1) + kernel)
    centres = factor * np.arange(len(cells)) + (kernel - 1) / 2
    weights = np.maximum(0, 1 - np.abs(pixels[:, None] - centres[None, :]) / reach)
    return weights @ cells


@pytest.mark.parametrize(("kernel", "factor"), [(4, 2), (16, 8), (32, 16), (64, 32), (63, 32)])
def test_is_separable_bilinear_interpolation(kernel: int, factor: int) -> None:
    cells = np.random.default_rng(0).normal(size=(3, 5))
    layer = BilinearUpsample(1, factor, kernel_size=kernel).eval()
    got = layer(torch.from_numpy(cells).float()[None, None])[0, 0].numpy()
    rows = np.stack([interpolated(column, kernel, factor) for column in cells.T], axis=1)
    wanted = np.stack([interpolated(row, kernel, factor) for row in rows])
    assert got.shape == wanted.shape == (factor * 2 + kernel, factor * 4 + kernel)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("factor", (*FACTORS, 3))
@pytest.mark.parametrize("less", [0, 1])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 2), (5, 5)])
def test_training_computes_what_eval_computes(
    factor: int, less: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    cells = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    layer = BilinearUpsample(3, factor, kernel_size=2 * factor - less).double()
    trained, evaluated = layer.train()(cells), layer.eval()(cells)
    rounding = 1e-6 if factor == 3 else 0  # of thirds, in the float32 kernel
    torch.testing.assert_close(trained, evaluated, rtol=0, atol=1e-12 + rounding)
    seed = torch.randn_like(trained)
    (of_trained,) = torch.autograd.grad(trained, cells, seed)
    (of_evaluated,) = torch.autograd.grad(evaluated, cells, seed)
    torch.testing.assert_close(of_trained, of_evaluated, rtol=0, atol=1e-10 + 10 * rounding)


@pytest.mark.parametrize("factor", FACTORS)
def test_learned_starts_as_the_fixed_one(factor: int) -> None:
    torch.manual_seed(0)
    cells = torch.randn(2, 3, 2, 3)
    fixed = BilinearUpsample(3, factor).eval()
    for mode in (True, False):
        learned = BilinearUpsample(3, factor, "learned").train(mode)
        torch.testing.assert_close(learned(cells), fixed(cells), rtol=0, atol=1e-5)


def test_learned_is_dense_and_trained_while_fixed_is_not_in_a_checkpoint() -> None:
    learned, fixed = BilinearUpsample(3, 2, "learned"), BilinearUpsample(3, 2)
    assert isinstance(learned.weight, nn.Parameter)
    assert learned.weight.shape == (3, 3, 4, 4)
    assert list(learned.state_dict()) == ["weight"]
    assert list(fixed.parameters()) == [] and list(fixed.state_dict()) == []


@pytest.mark.parametrize("kernel", [4, 3, 16, 15])
@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
def test_phases_in_order_are_the_upsampling(kernel: int, size: tuple[int, int]) -> None:
    factor = (kernel + 1) // 2
    layer = BilinearUpsample(3, factor, kernel_size=kernel).eval()
    cells = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    phases = layer.phases(cells)
    assert phases.shape == (2, 3, factor * factor, size[0] + 1, size[1] + 1)
    got = nn.functional.pixel_shuffle(phases.flatten(1, 2), factor)
    wanted = layer(cells)
    torch.testing.assert_close(got[:, :, : wanted.shape[2], : wanted.shape[3]], wanted)
    assert not got[:, :, wanted.shape[2] :].any(), "an odd kernel ends one pixel earlier"


def test_a_learned_upsampling_has_no_phases() -> None:
    with pytest.raises(ValueError, match="learned"):
        BilinearUpsample(2, 2, "learned").phases(torch.zeros(1, 2, 3, 3))
