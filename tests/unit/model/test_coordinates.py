"""Crops against those that the authors' Caffe nets were published with.

Source of the wanted numbers: the `offset` of each Crop layer in the prototxt files of
shelhamer/fcn.berkeleyvision.org; receptive fields and strides from table 1 of arXiv 1411.4038.
"""

from __future__ import annotations

from fractions import Fraction
from typing import get_args

import pytest
import torch
from torch.nn import functional

from model.backbones.base import SAME_CROPS
from model.backbones.caffe import Padding
from model.backbones.vgg16 import vgg16_maps
from model.coordinates import IMAGE, CoordinateMap, CropOffsets, crop_offset, fcn_crops, tile


def test_crops_of_the_padded_vgg16() -> None:
    """Those of stride 4 are not the authors', who have no such net."""
    assert fcn_crops(vgg16_maps("pad100")) == CropOffsets(
        final={32: 19, 16: 27, 8: 31, 4: 33},
        upsampled={16: 0, 8: 0, 4: 0},
        skips={16: 5, 8: 9, 4: 17},
    )


def test_same_crops_are_half_a_factor() -> None:
    assert (
        CropOffsets(
            final={32: 16, 16: 8, 8: 4, 4: 2},
            upsampled={16: 1, 8: 1, 4: 1},
            skips={16: 0, 8: 0, 4: 0},
        )
        == SAME_CROPS
    )


def test_cells_of_the_same_vgg16_are_tiles() -> None:
    for stride, at in vgg16_maps("same").items():
        assert at.stride == stride and at.start == tile(stride).start
    assert fcn_crops(vgg16_maps("same")) == SAME_CROPS


@pytest.mark.parametrize("padding", get_args(Padding))
def test_fc7_of_vgg16_sees_404_pixels_at_stride_32(padding: Padding) -> None:
    fc7 = vgg16_maps(padding)[32]
    assert fc7.receptive_field_px == 404 and fc7.stride == 32


def alexnet_fc7() -> CoordinateMap:
    """CaffeNet as FCN-AlexNet pads it: conv1 by 100, fc6 a 6x6 convolution."""
    at = IMAGE.conv(11, stride=4, pad=100).conv(3, stride=2)
    at = at.conv(5, pad=2).conv(3, stride=2)
    return at.conv(3, pad=1).conv(3, pad=1).conv(3, pad=1).conv(3, stride=2).conv(6)


def test_alexnet_needs_a_kernel_of_63() -> None:
    fc7 = alexnet_fc7()
    assert fc7.receptive_field_px == 355 and fc7.stride == 32
    assert crop_offset(fc7.deconv(63, 32), IMAGE) == 18
    with pytest.raises(ValueError, match=r"18\.5 cells apart"):
        crop_offset(fc7.deconv(64, 32), IMAGE)


def test_padding_of_a_deconvolution_replaces_the_crop() -> None:
    """`pad` of a Caffe Deconvolution cuts that many cells."""
    assert crop_offset(tile(8).deconv(16, 8, pad=4), IMAGE) == 0


def test_a_map_inside_the_image_cannot_be_cut_to_it() -> None:
    with pytest.raises(ValueError, match="starts 3 cells inside"):
        crop_offset(IMAGE.cropped(3), IMAGE)


def test_maps_of_two_strides_cannot_be_cut_to_each_other() -> None:
    with pytest.raises(ValueError, match="strides 16 and 8"):
        crop_offset(tile(16), tile(8))


@pytest.mark.parametrize(
    ("kernel", "stride", "pad"), [(3, 1, 1), (3, 1, 0), (2, 2, 0), (3, 2, 1), (7, 4, 3), (5, 3, 0)]
)
def test_a_window_is_centred_where_the_map_says(kernel: int, stride: int, pad: int) -> None:
    """A box filter over a ramp gives the coordinate of the window's centre."""
    at = IMAGE.conv(kernel, stride, pad)
    ramp = torch.arange(40.0).view(1, 1, 1, 40)
    means = functional.conv2d(
        functional.pad(ramp, (pad, pad)), torch.full((1, 1, 1, kernel), 1 / kernel), stride=stride
    ).flatten()
    cell = 4  # its window is inside the ramp, so padding does not touch its mean
    assert means[cell].item() == pytest.approx(float(at.start + at.stride * cell))
    assert at.receptive_field_px == kernel


@pytest.mark.parametrize(("kernel", "factor"), [(4, 2), (16, 8), (63, 32), (64, 32)])
def test_a_deconvolution_is_centred_where_the_map_says(kernel: int, factor: int) -> None:
    """One lit cell spreads over `kernel` pixels whose centre lies on the cell."""
    at = IMAGE.deconv(kernel, factor)
    lit = torch.zeros(1, 1, 1, 5)
    lit[..., 3] = 1
    spread = functional.conv_transpose2d(
        lit, torch.ones(1, 1, 1, kernel), stride=(1, factor)
    ).flatten()
    centre = Fraction(int(spread.nonzero().sum()), kernel)
    assert at.start + at.stride * centre == 3
