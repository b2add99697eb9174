"""Scales, crops, shifts, flips, recolours and mixes at random. Void stays void, as is all outside.

Each sample draws from a generator of its own, seeded by (seed, epoch, index): the augmentation is
the same whatever the number of worker processes, and a resumed run repeats nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.modality import LOG_DEPTH_MEAN, RGB, Modality
from training.datasets.base import VOID, Sample, UInt8Array

_GREY = 128
"""Fills the image beyond its border. ImageNet's mean is near it, so it is near the networks' 0."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601 weights of R, G, B."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Sets how images change: `scale` is drawn log-uniformly; colours by half-widths around 1.

    Raises: ValueError naming the field that makes no sense.
    """

    crop_height: int | None = 320
    crop_width: int | None = 448
    """None for both takes whole images, each at its own (scaled) size."""
    jitter_px: int = 0
    """Whole images are shifted up to so far in each direction; crops lie anywhere as it is."""
    min_scale: float = 0.6
    max_scale: float = 2.0
    aspect: float = 0.0
    """Width and height may scale apart by up to this factor, log-uniformly: 0.1 is +-10 %."""
    flip: bool = True
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    channel_gain: float = 0.0
    """Scales each of R, G, B on its own, as another white balance does."""
    mix: float = 0.0
    """Share of the crops that get half of the classes of another crop pasted in, see `mix_classes`;
    the loader does it, since a call of this changes one sample alone."""

    def __post_init__(self) -> None:
        sides = (self.crop_height, self.crop_width)
        if (self.crop_height is None) != (self.crop_width is None):
            raise ValueError("augment: crop_height and crop_width: want both, or null for both")
        if any(side is not None and side < 1 for side in sides):
            raise ValueError("augment: crop_height and crop_width must be >= 1")
        if self.jitter_px < 0:
            raise ValueError("augment: jitter_px must not be negative")
        if self.jitter_px and self.crop_height is not None:
            raise ValueError(
                "augment: jitter_px shifts whole images: set it to 0 or the crop to null"
            )
        if not 0 < self.min_scale <= self.max_scale:
            raise ValueError("augment: want 0 < min_scale <= max_scale")
        amounts = (self.aspect, self.brightness, self.contrast, self.saturation, self.channel_gain)
        if not all(0 <= amount < 1 for amount in amounts):
            raise ValueError("augment: aspect and colour amounts must lie in [0, 1)")
        if not 0 <= self.mix <= 1:
            raise ValueError("augment: mix must lie in [0, 1]")
        if self.mix and self.crop_height is None:
            raise ValueError("augment: mix pastes between crops of one size: set it to 0 or a crop")

    def __call__(
        self, sample: Sample, rng: np.random.Generator, modality: Modality = RGB
    ) -> Sample:
        """Crop crop_height x crop_width, or all, of the scaled, flipped, recoloured sample.

        Colour changes leave other channels alone; the rest applies to all.
        """
        sample = self._scale_and_crop(sample, rng)
        if self.jitter_px:
            sample = _shifted(sample, *rng.integers(-self.jitter_px, self.jitter_px + 1, 2))
        if self.flip and rng.random() < 0.5:
            sample = Sample(sample.image[:, ::-1], sample.target[:, ::-1])
        image = sample.image
        recolours = any((self.brightness, self.contrast, self.saturation, self.channel_gain))
        if recolours and modality == RGB:
            image = self._recolour(image, rng)
        elif recolours and modality != "hha":
            color = self._recolour(image[..., :3], rng)
            image = np.concatenate([color, image[..., 3:]], axis=2)
        return Sample(np.ascontiguousarray(image), np.ascontiguousarray(sample.target))

    def _scale_and_crop(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Resample only the window that survives: scaling the whole image first would spend
        most of its time on pixels the crop throws away."""
        scale = np.exp(rng.uniform(np.log(self.min_scale), np.log(self.max_scale)))
        stretch = np.exp(rng.uniform(-1, 1) * np.log1p(self.aspect) / 2)
        if self.crop_height is None and scale == stretch == 1:
            return sample
        rows = _window(sample.target.shape[0], scale * stretch, self.crop_height, rng)
        columns = _window(sample.target.shape[1], scale / stretch, self.crop_width, rng)
        size = (columns.length, rows.length)
        box = (columns.start, rows.start, columns.stop, rows.stop)
        image = _resized(sample.image, size, Image.Resampling.BILINEAR, box)
        target = _resized(sample.target, size, Image.Resampling.NEAREST, box)
        crop = (self.crop_height or rows.length, self.crop_width or columns.length)
        place = np.s_[
            rows.place : rows.place + rows.length, columns.place : columns.place + columns.length
        ]
        out = _void_canvas(*crop, sample)
        out.image[place] = image
        out.target[place] = target
        return out

    def _recolour(self, image: UInt8Array, rng: np.random.Generator) -> UInt8Array:
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


def mix_classes(sample: Sample, other: Sample, rng: np.random.Generator) -> Sample:
    """Put pixels and labels of half of the classes of `other`, drawn at random, into `sample`.

    Half is rounded down. Both are crops of one size; of several labellings the first one's classes
    are drawn. So a network sees things in front of backgrounds that no photo shows them with.
    Source: Olsson et al., ClassMix, arXiv 2007.07936, which pastes between images without labels.
    """
    labels = other.target.reshape(*other.target.shape[:2], -1)[..., 0]
    present = np.unique(labels[labels != VOID])
    chosen = rng.choice(present, len(present) // 2, replace=False)
    pasted = np.isin(labels, chosen)
    image, target = sample.image.copy(), sample.target.copy()
    image[pasted], target[pasted] = other.image[pasted], other.target[pasted]
    return Sample(image, target)


def pad(samples: Sequence[Sample]) -> list[Sample]:
    """Make all as high and as wide as the largest, with void at the right and below."""
    height = max(sample.target.shape[0] for sample in samples)
    width = max(sample.target.shape[1] for sample in samples)
    padded = []
    for sample in samples:
        rows, columns = sample.target.shape[:2]
        if (rows, columns) == (height, width):
            padded.append(sample)
            continue
        out = _void_canvas(height, width, sample)
        out.image[:rows, :columns] = sample.image
        out.target[:rows, :columns] = sample.target
        padded.append(out)
    return padded


def _void_canvas(height: int, width: int, like: Sample) -> Sample:
    """Make void in the channels and labellings of `like`, as what lies beyond its image."""
    channels, labellings = like.image.shape[2:], like.target.shape[2:]
    image = np.full((height, width, *channels), _GREY, like.image.dtype)
    if image.dtype == np.float32:
        image[..., 3:] = LOG_DEPTH_MEAN
    return Sample(image, np.full((height, width, *labellings), VOID, np.uint8))


def _resized(
    array: npt.NDArray[Any],
    size: tuple[int, int],
    method: Image.Resampling,
    box: tuple[float, float, float, float],
) -> npt.NDArray[Any]:
    """Resample the `box` of [H,W] or [H,W,C] to `size`, (width, height)."""
    if array.dtype == np.uint8 and array.shape[2:] in ((), (3,)):
        return np.asarray(Image.fromarray(array).resize(size, method, box))
    planes = [
        np.asarray(Image.fromarray(plane).resize(size, method, box))
        for plane in np.moveaxis(array, -1, 0)
    ]
    return np.stack(planes, axis=-1)


def _shifted(sample: Sample, down: int, right: int) -> Sample:
    """Keep the size and lose what is shifted out. Either distance may be negative, or more than the
    image is large."""
    height, width = sample.target.shape[:2]
    out = _void_canvas(height, width, sample)
    to = np.s_[max(0, down) : max(0, height + down), max(0, right) : max(0, width + right)]
    source = np.s_[max(0, -down) : max(0, height - down), max(0, -right) : max(0, width - right)]
    out.image[to] = sample.image[source]
    out.target[to] = sample.target[source]
    return out


@dataclass(frozen=True, slots=True)
class _Window:
    """Says that [start, stop) of the source is resampled to `length` and put at `place`."""

    start: float
    stop: float
    length: int
    place: int


def _window(side: int, scale: float, crop: int | None, rng: np.random.Generator) -> _Window:
    scaled = max(1, round(side * scale))
    if crop is None:
        return _Window(0, side, scaled, 0)
    if scaled >= crop:
        first = int(rng.integers(0, scaled - crop + 1))
        step = side / scaled
        return _Window(first * step, min((first + crop) * step, side), crop, 0)
    return _Window(0, side, scaled, int(rng.integers(0, crop - scaled + 1)))
