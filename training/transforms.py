"""Random scale, crop, flip and colour. Void stays void: what lies outside the picture is void.

Each sample draws from a generator of its own, seeded by (seed, epoch, index): the augmentation is
the same whatever the number of worker processes, and a resumed run repeats nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.datasets.base import VOID, Pixels, Sample

_GREY = 128
"""Fills the image beyond its border. ImageNet's mean is near it, so it is near the networks' 0."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601 weights of R, G, B."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """`scale` is drawn log-uniformly; the colour amounts are half-widths around 1."""

    crop_height: int = 320
    crop_width: int = 448
    min_scale: float = 0.6
    max_scale: float = 2.0
    aspect: float = 0.0
    """Width and height may scale apart by up to this factor, log-uniformly: 0.1 is +-10 %."""
    flip: bool = True
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    channel_gain: float = 0.0
    """Each of R, G, B on its own: another white balance."""

    def __post_init__(self) -> None:
        if min(self.crop_height, self.crop_width) < 1:
            raise ValueError("augment: crop_height and crop_width must be >= 1")
        if not 0 < self.min_scale <= self.max_scale:
            raise ValueError("augment: want 0 < min_scale <= max_scale")
        amounts = (self.aspect, self.brightness, self.contrast, self.saturation, self.channel_gain)
        if not all(0 <= amount < 1 for amount in amounts):
            raise ValueError("augment: aspect and colour amounts must lie in [0, 1)")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """A crop of crop_height x crop_width from the scaled, flipped, recoloured sample."""
        sample = self._scale_and_crop(sample, rng)
        if self.flip and rng.random() < 0.5:
            sample = Sample(sample.image[:, ::-1], sample.target[:, ::-1])
        image = self._recolour(sample.image, rng)
        return Sample(np.ascontiguousarray(image), np.ascontiguousarray(sample.target))

    def _scale_and_crop(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Only the window that survives is resampled: scaling the whole picture first would spend
        most of its time on pixels the crop throws away."""
        scale = np.exp(rng.uniform(np.log(self.min_scale), np.log(self.max_scale)))
        stretch = np.exp(rng.uniform(-1, 1) * np.log1p(self.aspect) / 2)
        rows = _window(sample.target.shape[0], scale * stretch, self.crop_height, rng)
        columns = _window(sample.target.shape[1], scale / stretch, self.crop_width, rng)
        size = (columns.length, rows.length)
        box = (columns.start, rows.start, columns.stop, rows.stop)
        image = Image.fromarray(sample.image).resize(size, Image.Resampling.BILINEAR, box)
        target = Image.fromarray(sample.target).resize(size, Image.Resampling.NEAREST, box)
        crop = (self.crop_height, self.crop_width)
        place = np.s_[
            rows.place : rows.place + rows.length, columns.place : columns.place + columns.length
        ]
        out = Sample(np.full((*crop, 3), _GREY, np.uint8), np.full(crop, VOID, np.uint8))
        out.image[place] = np.asarray(image)
        out.target[place] = np.asarray(target)
        return out

    def _recolour(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        brightness, contrast, saturation = (
            1 + rng.uniform(-amount, amount)
            for amount in (self.brightness, self.contrast, self.saturation)
        )
        gains = 1 + rng.uniform(-self.channel_gain, self.channel_gain, 3)
        pixels: npt.NDArray[np.float32] = image.astype(np.float32)
        pixels *= (brightness * gains).astype(np.float32)
        luma = np.asarray(pixels @ _LUMA, np.float32)[..., None]
        pixels = luma + np.float32(saturation) * (pixels - luma)
        mean = np.float32(luma.mean())
        pixels = mean + np.float32(contrast) * (pixels - mean)
        return pixels.clip(0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class _Window:
    """[start, stop) in the source, resampled to `length`, put at `place` of the crop."""

    start: float
    stop: float
    length: int
    place: int


def _window(side: int, scale: float, crop: int, rng: np.random.Generator) -> _Window:
    scaled = max(1, round(side * scale))
    if scaled >= crop:
        first = int(rng.integers(0, scaled - crop + 1))
        step = side / scaled
        return _Window(first * step, min((first + crop) * step, side), crop, 0)
    return _Window(0, side, scaled, int(rng.integers(0, crop - scaled + 1)))
