"""Bilinear upsampling by a fixed factor as the paper does it: a transposed convolution.

Source: Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation",
arXiv 1411.4038 section 3.3; kernel as `surgery.upsample_filt` of shelhamer/fcn.berkeleyvision.org.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Upsampling = Literal["fixed", "learned"]
Lowering = Literal["conv_transpose", "interpolate", "phases"]
"""How a fixed upsampling is computed outside training; the values are the same.

`phases` is for the last one only, see `BilinearUpsample.phases`; the inner ones stay transposed
convolutions with it.
"""


def bilinear_kernel(size: int) -> Tensor:
    """Makes the bilinear interpolation weights, float32 [size,size]; the peak is at the centre.

    For an even `size` = 2f the kernel sums to f*f, so a constant map keeps its value.
    """
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 == 1 else factor - 0.5
    ramp = 1 - (torch.arange(size, dtype=torch.float64) - centre).abs() / factor
    return torch.outer(ramp, ramp).float()


class BilinearUpsample(nn.Module):
    """Turns [N,C,h,w] into [N,C,f*(h-1)+k,f*(w-1)+k], uncropped; k = `kernel_size`, else 2f.

    `fixed`: one kernel per channel, never trained; computed as a transposed convolution with
    C groups (the paper's C x C weight is zero off the diagonal, so nothing is lost).
    `learned`: the paper's dense C x C weight, initialised to the same function.
    """

    def __init__(
        self,
        channels: int,
        factor: int,
        mode: Upsampling = "fixed",
        kernel_size: int | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.factor, self.mode = channels, factor, mode
        self.lowering: Lowering = "conv_transpose"
        self.kernel_size = kernel_size or 2 * factor
        kernel = bilinear_kernel(self.kernel_size)
        if mode == "learned":
            weight = torch.zeros(channels, channels, self.kernel_size, self.kernel_size)
            weight[torch.arange(channels), torch.arange(channels)] = kernel
            self.weight = nn.Parameter(weight)
        else:
            # Not persistent: it is a constant, and a checkpoint should not be able to change it.
            self.register_buffer(
                "weight", kernel.repeat(channels, 1, 1, 1).contiguous(), persistent=False
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "learned":
            return functional.conv_transpose2d(x, self.weight, stride=self.factor)
        if (self.training or self.lowering == "interpolate") and self.can_interpolate:
            return self._interpolate(x)
        return functional.conv_transpose2d(
            x, self.weight.to(x.dtype), stride=self.factor, groups=self.channels
        )

    def phases(self, x: Tensor) -> Tensor:
        """Turns [N,C,h,w] into [N,C,f*f,h+1,w+1]: what `forward` gives before pixels are ordered.

        Of f neighbouring rows each has its own two taps, and so have f columns: f*f phases, each a
        2x2 convolution of the coarse map. Phase f*a+b of cell (i,j) is pixel (f*i+a, f*j+b), so
        `pixel_shuffle` orders them, and what looks at one pixel at a time, arg max say, may come
        first: it then moves one number per pixel in place of C.
        """
        if self.mode == "learned":
            raise ValueError("a learned upsampling mixes the classes: it has no phases by class")
        factor = self.factor
        kernel = self.weight.new_zeros(self.channels, 2 * factor, 2 * factor)
        kernel[:, : self.kernel_size, : self.kernel_size] = self.weight[:, 0]
        # Row f*i+a of the result is x[i] * kernel[a] + x[i-1] * kernel[a+f]; columns alike.
        taps = kernel.view(self.channels, 2, factor, 2, factor).flip(1, 3).permute(0, 2, 4, 1, 3)
        taps = taps.reshape(self.channels * factor * factor, 1, 2, 2).to(x.dtype)
        mixed = functional.conv2d(x, taps, padding=1, groups=self.channels)
        return mixed.reshape(len(x), self.channels, factor * factor, *mixed.shape[2:])

    @property
    def can_interpolate(self) -> bool:
        even = self.factor % 2 == 0 and self.kernel_size == 2 * self.factor
        odd = self.training and self.kernel_size == 2 * self.factor - 1
        return self.mode == "fixed" and (even or odd)

    def _interpolate(self, x: Tensor) -> Tensor:
        """Computes the same values so that backward through it is several times faster.

        A transposed convolution with kernel 2f and stride f equals zero-padding by one cell,
        half-pixel bilinear interpolation by f, and cutting f/2 pixels from each side; for an odd
        f they lie half a pixel apart. With kernel 2f - 1 the cells lie on pixels, f apart, and what
        is cut is the padding's own pixel; that only in training, as it needs sizes, not a factor.
        """
        size = [self.factor * (side - 1) + self.kernel_size for side in x.shape[2:]]
        padded = functional.pad(x, (1, 1, 1, 1))
        if self.kernel_size % 2:
            corners = [self.factor * (side + 1) + 1 for side in x.shape[2:]]
            wide = functional.interpolate(padded, corners, mode="bilinear", align_corners=True)
            return wide[:, :, 1:-1, 1:-1]
        wide = functional.interpolate(
            padded, scale_factor=float(self.factor), mode="bilinear", align_corners=False
        )
        half = self.factor // 2
        return wide[:, :, half : half + size[0], half : half + size[1]]
