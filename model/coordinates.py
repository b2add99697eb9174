"""Where the cells of a feature map lie on the image, and the crops that follow from it.

Every layer of an FCN maps coordinates by a scale and a shift, so does any chain of them; two maps
can be added, or a map cut to the image, once one is cut by a whole number of cells. Computing
those numbers from kernels, strides and paddings keeps them right when a padding changes.

Same idea as `caffe/coord_map.py` of BVLC/caffe, which shelhamer/fcn.berkeleyvision.org uses.
Padding is the padding before the first pixel: what is added after the last one moves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class CropOffsets:
    """Holds the pixels to cut off the top and left before a crop to the wanted size, per place.

    `final[stride]` cuts the last upsampled map to the image. `upsampled[stride]` cuts an inner one
    to the skip of that stride, `skips[stride]` the skip to it (the padded nets' skips are larger
    than what is added to them). With `odd_kernels` every upsampling by f has a kernel of 2f - 1
    instead of 2f.
    """

    final: dict[int, int]
    upsampled: dict[int, int] = field(default_factory=dict)
    skips: dict[int, int] = field(default_factory=dict)
    odd_kernels: bool = False


@dataclass(frozen=True, slots=True)
class CoordinateMap:
    """Places cells: cell i is centred on image pixel `start + stride * i`, along one axis.

    `receptive_field_px` is how many pixels a cell sees; layers that upsample leave it alone.
    """

    stride: Fraction = Fraction(1)
    start: Fraction = Fraction(0)
    receptive_field_px: Fraction = Fraction(1)

    def conv(self, kernel: int, stride: int = 1, pad: int = 0) -> CoordinateMap:
        """Gives the map after a convolution or a pooling."""
        return CoordinateMap(
            self.stride * stride,
            self.start + self.stride * (Fraction(kernel - 1, 2) - pad),
            self.receptive_field_px + (kernel - 1) * self.stride,
        )

    def deconv(self, kernel: int, stride: int, pad: int = 0) -> CoordinateMap:
        """Gives the map after a transposed convolution."""
        fine = self.stride / stride
        start = self.start - fine * (Fraction(kernel - 1, 2) - pad)
        return CoordinateMap(fine, start, self.receptive_field_px)

    def upsampled(self, factor: int, odd_kernel: bool = False) -> CoordinateMap:
        """Gives the map after bilinear upsampling, kernel 2 * factor or one less, uncropped."""
        return self.deconv(2 * factor - odd_kernel, factor)

    def cropped(self, offset: int) -> CoordinateMap:
        """Gives the map after cutting `offset` cells off the top or left."""
        return CoordinateMap(
            self.stride, self.start + self.stride * offset, self.receptive_field_px
        )


@dataclass(frozen=True, slots=True)
class PixelRange:
    """Says that cell i depends on no pixel but `stride * i + first` .. `stride * i + last`."""

    stride: Fraction
    first: Fraction
    last: Fraction

    @classmethod
    def of(cls, at: CoordinateMap) -> PixelRange:
        """Gives the receptive field of the cells of a map."""
        reach = (at.receptive_field_px - 1) / 2
        return cls(at.stride, at.start - reach, at.start + reach)

    def conv(self, kernel: int, pad: int) -> PixelRange:
        """Gives the range after a convolution of stride 1."""
        first = self.first - self.stride * pad
        return PixelRange(self.stride, first, self.last + self.stride * (kernel - 1 - pad))

    def upsampled(self, factor: int, kernel: int, cut: int) -> PixelRange:
        """Gives the range after a transposed convolution less `cut` rows: row j takes the cells i
        with 0 <= j + cut - factor * i < kernel."""
        fine = self.stride / factor
        return PixelRange(fine, self.first + fine * (cut - kernel + 1), self.last + fine * cut)

    def cropped(self, offset: int) -> PixelRange:
        moved = self.stride * offset
        return PixelRange(self.stride, self.first + moved, self.last + moved)

    def joined(self, other: PixelRange) -> PixelRange:
        """Gives the range after the sum of two maps of the same stride."""
        first, last = min(self.first, other.first), max(self.last, other.last)
        return PixelRange(self.stride, first, last)


IMAGE = CoordinateMap()


def tile(stride: int) -> CoordinateMap:
    """Makes a map whose cell i stands for the pixels stride * i .. stride * i + stride - 1."""
    return IMAGE.conv(stride, stride)


def crop_offset(of: CoordinateMap, to: CoordinateMap) -> int:
    """Counts the cells to cut off the top or left of `of` so that its cells lie on those of `to`.

    Raises: ValueError if their strides differ, if they are a fraction of a cell apart (give the
    deconvolution an odd kernel, or change the padding), or if `of` starts inside `to`.
    """
    if of.stride != to.stride:
        raise ValueError(f"maps of strides {of.stride} and {to.stride} cannot be laid on another")
    offset = (to.start - of.start) / of.stride
    if offset.denominator != 1:
        raise ValueError(
            f"the maps are {float(offset):g} cells apart: no crop by whole cells aligns them"
        )
    if offset < 0:
        raise ValueError(
            f"the map to be cut starts {-offset} cells inside the other: pad the input more"
        )
    return int(offset)


def fcn_crops(maps: Mapping[int, CoordinateMap]) -> CropOffsets:
    """Computes all crops of the FCNs over a backbone with these maps, by their strides.

    A cell of fc7 that is centred on a pixel needs kernels that have a central one, so odd ones; a
    cell centred between two pixels needs even ones. Raises: ValueError as `crop_offset`.
    """
    coarsest, *finer = sorted(maps, reverse=True)
    at = maps[coarsest]
    odd = at.start.denominator == 1
    final = {coarsest: crop_offset(at.upsampled(coarsest, odd), IMAGE)}
    upsampled, skips = {}, {}
    for stride in finer:
        at = at.upsampled(2, odd)
        upsampled[stride], skips[stride] = _meet(at, maps[stride])
        at = at.cropped(upsampled[stride])
        final[stride] = crop_offset(at.upsampled(stride, odd), IMAGE)
    return CropOffsets(final, upsampled, skips, odd)


def _meet(upsampled: CoordinateMap, skip: CoordinateMap) -> tuple[int, int]:
    """Counts the cells to cut from the upsampled map and the skip; who starts later keeps all."""
    if upsampled.start <= skip.start:
        return crop_offset(upsampled, skip), 0
    return 0, crop_offset(skip, upsampled)
