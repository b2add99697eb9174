"""Winograd's form of a convolution: the same values, half the multiplications."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.export.winograd import WinogradConv2d, WinogradError, use_winograd

INPUTS, OUTPUTS = 4, 5


@pytest.mark.parametrize("kernel", [3, 7, 11])
@pytest.mark.parametrize("pad", [0, 1, "same"])
@pytest.mark.parametrize("bias", [True, False])
def test_gives_the_same_values(kernel: int, pad: int | str, bias: bool) -> None:
    torch.manual_seed(kernel)
    padding = kernel // 2 if pad == "same" else int(pad)
    conv = nn.Conv2d(INPUTS, OUTPUTS, kernel, padding=padding, bias=bias)
    form = WinogradConv2d(conv)
    for size in [(12, 16), (11, 13), (13, 12), (12, 11)]:
        x = torch.randn(2, INPUTS, *size)
        with torch.inference_mode():
            wanted, got = conv(x), form(x)
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, rtol=0, atol=2e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize(("kernel", "products"), [(3, 16), (7, 100), (11, 256)])
def test_multiplies_half_as_often(kernel: int, products: int) -> None:
    """For each input, output and 2x2 cells; the plain form takes (2 * kernel) ** 2."""
    form = WinogradConv2d(nn.Conv2d(INPUTS, OUTPUTS, kernel))
    weights = [held for name, held in form.named_buffers() if name.startswith("product_")]
    assert len(weights) == 16
    assert sum(held[0, 0].numel() for held in weights) == products


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(INPUTS, OUTPUTS, 5),
        nn.Conv2d(INPUTS, OUTPUTS, (3, 7)),
        nn.Conv2d(INPUTS, OUTPUTS, 3, stride=2),
        nn.Conv2d(INPUTS, OUTPUTS, 3, dilation=2),
        nn.Conv2d(INPUTS, INPUTS, 3, groups=INPUTS),
        nn.Conv2d(INPUTS, OUTPUTS, 3, padding="same"),
        nn.Conv2d(INPUTS, OUTPUTS, 1),
    ],
)
def test_refuses_what_it_cannot_do(conv: nn.Conv2d) -> None:
    with pytest.raises(WinogradError, match=r"square kernels of 3, 7 or 11 taps"):
        WinogradConv2d(conv)


def test_takes_the_place_of_named_layers() -> None:
    network = nn.ModuleDict(
        {"fc6": nn.Conv2d(4, 4, 7), "pw1": nn.ModuleDict({"conv": nn.Conv2d(4, 4, 3)})}
    )
    use_winograd(network, ["fc6", "pw1"])
    assert isinstance(network.get_submodule("fc6"), WinogradConv2d)
    assert isinstance(network.get_submodule("pw1.conv"), WinogradConv2d)
    with pytest.raises(WinogradError, match="there is no layer 'fc6': choose from pw2"):
        use_winograd(nn.ModuleDict({"pw2": nn.Conv2d(4, 4, 1)}), ["fc6"])
    with pytest.raises(WinogradError, match="layer pw2: its kernel is 1x1"):
        use_winograd(nn.ModuleDict({"pw2": nn.Conv2d(4, 4, 1)}), ["pw2"])
