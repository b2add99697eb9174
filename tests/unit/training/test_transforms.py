"""Augmentation, on scenes whose colour tells the label: red is the class id, green the column,
blue the row. Where image and target stay together, the colours say so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from training.datasets.base import VOID, Sample
from training.transforms import Augmentation, mix_classes, pad

PLAIN: dict[str, Any] = {
    "flip": False,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
}


def scene(height: int = 40, width: int = 60) -> Sample:
    """Blocks of 20x20, class 0 to 5; red = 40 * class."""
    rows, columns = np.mgrid[:height, :width]
    target = (rows // 20 * 3 + columns // 20).astype(np.uint8)
    image = np.stack([40 * target, 4 * columns, 6 * rows], axis=-1).astype(np.uint8)
    return Sample(image, target)


def apply(sample: Sample, seed: int = 0, **fields: Any) -> Sample:
    return Augmentation(**{**PLAIN, **fields})(sample, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(20))
def test_a_crop_at_scale_1_is_a_window_of_the_scene(seed: int) -> None:
    sample = scene()
    image, target = apply(sample, seed, crop_height=24, crop_width=32, min_scale=1.0, max_scale=1.0)
    left, top = int(image[0, 0, 1]) // 4, int(image[0, 0, 2]) // 6
    window = np.s_[top : top + 24, left : left + 32]
    assert (image == sample.image[window]).all()
    assert (target == sample.target[window]).all()


def test_crops_reach_every_corner() -> None:
    corners = set()
    for seed in range(400):
        image, _ = apply(scene(), seed, crop_height=38, crop_width=58, min_scale=1.0, max_scale=1.0)
        corners.add((int(image[0, 0, 2]) // 6, int(image[0, 0, 1]) // 4))
    assert corners == {(top, left) for top in range(3) for left in range(3)}


def test_flip_mirrors_both() -> None:
    sample = scene()
    whole = {"crop_height": 40, "crop_width": 60, "min_scale": 1.0, "max_scale": 1.0}
    seen = set()
    for seed in range(20):
        image, target = apply(sample, seed, flip=True, **whole)
        mirrored = bool(image[0, 0, 1] > image[0, -1, 1])
        step = -1 if mirrored else 1
        assert (image == sample.image[:, ::step]).all()
        assert (target == sample.target[:, ::step]).all()
        seen.add(mirrored)
    assert seen == {False, True}


@pytest.mark.parametrize("seed", range(20))
def test_scaled_image_and_target_stay_together(seed: int) -> None:
    """Away from the blocks' borders, which bilinear scaling blurs, red still names the class."""
    sample = scene()
    image, target = apply(
        sample, seed, crop_height=50, crop_width=50, min_scale=0.5, max_scale=2.0, aspect=0.3
    )
    red = image[..., 0]
    agreeing = (red == 40 * target)[target != VOID]
    assert agreeing.size
    assert agreeing.mean() > 0.8


@pytest.mark.parametrize("seed", range(10))
def test_beyond_the_scene_is_void_and_grey(seed: int) -> None:
    image, target = apply(
        scene(), seed, crop_height=64, crop_width=96, min_scale=0.5, max_scale=0.5
    )
    inside = target != VOID
    assert inside.sum() == 20 * 30
    assert (image[~inside] == 128).all()
    rows, columns = np.nonzero(inside)
    assert (int(np.ptp(rows)), int(np.ptp(columns))) == (19, 29)  # one rectangle


@pytest.mark.parametrize("seed", range(10))
def test_targets_hold_only_labels_and_void(seed: int) -> None:
    """Nearest neighbour: an average of classes 0 and 4 would be class 2."""
    sample = scene()
    sample.target[sample.target % 2 == 1] = VOID
    _, target = apply(sample, seed, crop_height=50, crop_width=70, aspect=0.5)
    assert set(np.unique(target)) <= {0, 2, 4, VOID}


def test_scales_cover_their_range_and_no_more() -> None:
    """A step of 4 a column in green becomes 4 / scale."""
    scales = []
    for seed in range(200):
        image, _ = apply(
            scene(60, 60), seed, crop_height=24, crop_width=24, min_scale=0.5, max_scale=2.0
        )
        green = image[0, 2:-2, 1].astype(float)
        scales.append(4 * (len(green) - 1) / (green[-1] - green[0]))
    assert 0.48 < min(scales) < 0.6
    assert 1.8 < max(scales) < 2.2
    assert np.median(scales) == pytest.approx(1.0, abs=0.2)  # log-uniform


def test_same_generator_same_result() -> None:
    first, again, other = (
        apply(scene(), seed, crop_height=32, crop_width=32, brightness=0.3) for seed in (5, 5, 6)
    )
    assert (first.image == again.image).all()
    assert (first.target == again.target).all()
    assert (first.image != other.image).any()


def test_colours_change_and_the_target_does_not() -> None:
    sample = scene()
    whole = {"crop_height": 40, "crop_width": 60, "min_scale": 1.0, "max_scale": 1.0}
    for name in ("brightness", "contrast", "saturation", "channel_gain"):
        image, target = apply(sample, 1, **whole, **{name: 0.4})
        assert (image != sample.image).any(), name
        assert (target == sample.target).all()
        assert image.dtype == np.uint8


def test_a_grey_image_stays_grey_unless_channels_are_scaled_apart() -> None:
    grey = Sample(np.full((40, 60, 3), 100, np.uint8), np.zeros((40, 60), np.uint8))
    whole = {"crop_height": 40, "crop_width": 60, "min_scale": 1.0, "max_scale": 1.0}
    image, _ = apply(grey, 1, **whole, saturation=0.5, contrast=0.5)
    assert np.ptp(image.astype(int)) <= 1
    image, _ = apply(grey, 1, **whole, channel_gain=0.3)
    assert np.ptp(image[0, 0].astype(int)) > 1


def test_one_pixel() -> None:
    pixel = Sample(np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8))
    image, target = apply(pixel, crop_height=8, crop_width=8, min_scale=0.5, max_scale=0.5)
    assert image.shape == (8, 8, 3)
    assert (target == 0).sum() == 1


WHOLE: dict[str, Any] = {"crop_height": None, "crop_width": None}
AS_IT_IS: dict[str, Any] = {**WHOLE, "min_scale": 1.0, "max_scale": 1.0}


def test_a_whole_image_as_it_is() -> None:
    """Every value, too: no arithmetic that gives 99.99 for 100 and cuts it off."""
    sample = Sample(
        np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8), scene(37, 53).target
    )
    image, target = apply(sample, **AS_IT_IS)
    assert (image == sample.image).all()
    assert (target == sample.target).all()


@pytest.mark.parametrize("seed", range(5))
def test_a_whole_image_scaled(seed: int) -> None:
    """Nothing is cut off and nothing added, whatever the scale."""
    sample = scene()
    image, target = apply(sample, seed, **WHOLE, min_scale=0.5, max_scale=2.0)
    rows, columns = target.shape
    assert image.shape == (rows, columns, 3)
    assert rows / 40 == pytest.approx(columns / 60, rel=0.05)
    assert set(np.unique(target)) == set(range(6))


def test_jitter_shifts_image_and_target_alike() -> None:
    """They move by up to 3 pixels each way; what comes in is grey and void, what goes out is
    lost."""
    sample, seen = scene(), set()
    for seed in range(300):
        image, target = apply(sample, seed, **AS_IT_IS, jitter_px=3)
        assert target.shape == (40, 60)
        rows, columns = np.nonzero(target != VOID)
        inside = image[target != VOID].astype(int)
        assert (image[target == VOID] == 128).all()
        # Green is the column and blue the row of where a pixel came from.
        down, right = rows[0] - inside[0, 2] // 6, columns[0] - inside[0, 1] // 4
        assert (rows - inside[:, 2] // 6 == down).all()
        assert (columns - inside[:, 1] // 4 == right).all()
        assert len(rows) == (40 - abs(down)) * (60 - abs(right))
        assert (inside[:, 0] == 40 * target[target != VOID]).all()
        seen.add((int(down), int(right)))
    assert seen == {(down, right) for down in range(-3, 4) for right in range(-3, 4)}


def test_jitter_may_push_a_small_image_out() -> None:
    pixel = Sample(np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8))
    kept = {int(apply(pixel, seed, **AS_IT_IS, jitter_px=2).target[0, 0]) for seed in range(60)}
    assert kept == {0, VOID}


def test_padding_to_the_largest_of_a_batch() -> None:
    samples = [scene(40, 20), scene(20, 60)]
    high, wide = pad(samples)
    assert high.target.shape == wide.target.shape == (40, 60)
    assert (high.image[:, :20] == samples[0].image).all()
    assert (high.target[:, :20] == samples[0].target).all()
    assert (high.target[:, 20:] == VOID).all()
    assert (high.image[:, 20:] == 128).all()
    assert (wide.target[:20] == samples[1].target).all()
    assert (wide.target[20:] == VOID).all()
    same = scene()
    assert pad([same, same])[0] is same


def test_half_of_the_classes_of_another_crop_are_pasted() -> None:
    """Pixels and labels together, and all of a class or none of it."""
    sample, other = scene(), scene()
    other = Sample(255 - other.image, other.target[:, ::-1].copy())
    drawn = set()
    for seed in range(30):
        image, target = mix_classes(sample, other, np.random.default_rng(seed))
        pasted = (image == other.image).all(axis=2)
        assert (target == np.where(pasted, other.target, sample.target)).all()
        assert (image[~pasted] == sample.image[~pasted]).all()
        classes = frozenset(np.unique(other.target[pasted]).tolist())
        assert len(classes) == 3
        assert (np.isin(other.target, list(classes)) == pasted).all()
        drawn.add(classes)
    assert len(drawn) > 5
    assert (sample.image == scene().image).all()


def test_void_is_never_pasted() -> None:
    sample = scene()
    void = Sample(sample.image, np.full_like(sample.target, VOID))
    image, target = mix_classes(sample, void, np.random.default_rng(0))
    assert (image == sample.image).all()
    assert (target == sample.target).all()


@pytest.mark.parametrize("planes", [2, 8])
def test_what_lies_behind_the_labels_is_pasted_with_them(planes: int) -> None:
    """Further labellings, or what a teacher said."""
    sample, other = scene(), Sample(255 - scene().image, scene().target[:, ::-1].copy())
    plain = mix_classes(sample, other, np.random.default_rng(0)).target
    stacked = [Sample(each.image, np.stack([each.target] * planes, -1)) for each in (sample, other)]
    mixed = mix_classes(stacked[0], stacked[1], np.random.default_rng(0)).target
    assert (mixed == plain[..., None]).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_height": 0}, "crop_height"),
        ({"min_scale": 0.0}, "min_scale"),
        ({"min_scale": 2.0, "max_scale": 1.0}, "min_scale"),
        ({"brightness": 1.0}, r"\[0, 1\)"),
        ({"aspect": -0.1}, r"\[0, 1\)"),
        ({"crop_width": None}, "want both, or null for both"),
        ({**WHOLE, "jitter_px": -1}, "jitter_px must not be negative"),
        ({"jitter_px": 3}, "jitter_px shifts whole images"),
        ({"mix": -0.1}, "mix must lie in"),
        ({"mix": 1.5}, "mix must lie in"),
        ({**WHOLE, "mix": 0.5}, "mix pastes between crops of one size"),
    ],
)
def test_wrong_amounts(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**fields)


def planes(**fields: Any) -> tuple[Sample, Sample]:
    """A scene with red, green and blue again as further channels and the classes as a second
    labelling; and what becomes of it."""
    image, target = scene()
    deep = Sample(np.concatenate([image, image], axis=2), np.stack([target, target], axis=-1))
    augment = Augmentation(**{**PLAIN, "crop_height": 32, "crop_width": 48, **fields})
    return deep, augment(deep, np.random.default_rng(3), "rgb-hha")


@pytest.mark.parametrize(
    "fields",
    [
        {"aspect": 0.2, "flip": True, "min_scale": 0.4, "max_scale": 0.8},
        {"crop_height": None, "crop_width": None, "min_scale": 1.3, "max_scale": 1.7},
        {"crop_height": None, "crop_width": None, "jitter_px": 9, "min_scale": 1.0, "max_scale": 1},
    ],
)
def test_all_channels_and_labellings_move_together(fields: dict[str, Any]) -> None:
    deep, (image, target) = planes(**fields)
    assert image.shape[2] == 6
    assert (image[..., :3] == image[..., 3:]).all()
    assert (target[..., 0] == target[..., 1]).all()
    assert image.shape != deep.image.shape or (image != deep.image).any()


def test_only_colours_are_recoloured() -> None:
    whole = {"crop_height": 40, "crop_width": 60, "min_scale": 1.0, "max_scale": 1.0}
    deep, (image, _) = planes(**whole, brightness=0.5, channel_gain=0.3)
    assert (image[..., 3:] == deep.image[..., 3:]).all()
    assert (image[..., :3] != deep.image[..., :3]).any()
    augment = Augmentation(**{**PLAIN, **whole, "brightness": 0.5})
    hha = augment(scene(), np.random.default_rng(3), "hha").image
    assert (hha == scene().image).all()


def test_depth_keeps_its_values_and_beyond_the_image_is_its_mean() -> None:
    image, target = scene()
    depth = np.full((*target.shape, 1), 7.25, np.float32)
    augment = Augmentation(**{**PLAIN, "crop_height": 50, "crop_width": 60, "max_scale": 0.7})
    sample = Sample(np.concatenate([image, depth], axis=2), target)
    found = augment(sample, np.random.default_rng(0), "rgbd")
    assert found.image.dtype == np.float32
    outside = found.target == VOID
    assert outside.any()
    assert np.allclose(found.image[outside], [128, 128, 128, 7.844])
    assert np.allclose(found.image[~outside][:, 3], 7.25)
