"""Learning from maps that a network of another make left: the data set, the loss, the refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from model.build import build
from tests.unit.training.recipes import NARROW, MakeConfig
from tools.make_teacher_maps import Teacher
from training.config import ConfigError
from training.datasets import DatasetError, open_dataset
from training.datasets.base import VOID, SegmentationDataset
from training.datasets.taught import Taught, map_path
from training.learner import Learner
from training.losses import labelled_weight, map_distillation
from training.publish import shared_config
from training.train import train
from training.transforms import Augmentation


@pytest.fixture
def data(streets: Path) -> SegmentationDataset:
    return open_dataset("folder", streets, "train")


@pytest.fixture
def maps(data: SegmentationDataset, tmp_path: Path) -> Path:
    """Write maps that say each pixel's own label, half as large as the images."""
    folder = tmp_path / "maps"
    folder.mkdir()
    for index, (image, _label) in enumerate(data.pairs):
        target = data.target(index)[::2, ::2]
        planes = [np.where(target == each, 255, 0) for each in range(data.num_classes)]
        np.save(map_path(folder, image), np.stack(planes).astype(np.uint8))
    return folder


def test_maps_stand_beside_the_labels(data: SegmentationDataset, maps: Path) -> None:
    taught = Taught(data, maps)
    image, target = taught[0]
    assert target.shape == (*image.shape[:2], 1 + data.num_classes)
    assert np.array_equal(target[..., 0], data.target(0))
    known = target[..., 0] != VOID
    # All but the pixels at an edge between two classes, where the half-sized map is blurred.
    said = target[..., 1:].argmax(axis=-1)
    assert (said == target[..., 0])[known].mean() > 0.95
    assert np.array_equal(taught.target(0), data.target(0))
    assert np.array_equal(taught.image(0), data.image(0))


def test_maps_are_cropped_scaled_and_flipped_with_the_labels(
    data: SegmentationDataset, maps: Path
) -> None:
    taught = Taught(data, maps)
    augment = Augmentation(crop_height=40, crop_width=90, min_scale=0.5, max_scale=2.0)
    mirrored = 0
    for seed in range(12):
        sample = augment(taught[0], np.random.default_rng(seed))
        plain = augment(data[0], np.random.default_rng(seed))
        assert np.array_equal(sample.image, plain.image)
        assert np.array_equal(sample.target[..., 0], plain.target)
        known = plain.target != VOID
        said = sample.target[..., 1:].argmax(axis=-1)
        assert (said == plain.target)[known].mean() > 0.85
        mirrored += int((said[:, ::-1] == plain.target)[known].mean() < 0.85)
    assert mirrored, "no crop tells a mirrored map from its label: the test shows nothing"


def test_cross_entropy_with_a_map_pixel_by_pixel() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    maps = torch.randint(0, 86, (2, 4, 5, 3), generator=generator).to(torch.uint8)
    target = torch.randint(0, 3, (2, 4, 5), generator=generator).to(torch.uint8)
    target[0, :2] = VOID
    wanted = functional.cross_entropy(logits, maps.permute(0, 3, 1, 2) / 255, reduction="none")[
        target != VOID
    ].sum()
    assert float(map_distillation(logits, maps, target)) == pytest.approx(float(wanted), rel=1e-5)


def test_a_step_adds_the_maps_part(make_config: MakeConfig) -> None:
    config = make_config(network={**NARROW, "dropout": 0.0})
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 48, 64), generator=generator).to(torch.uint8)
    target = torch.randint(0, 4, (2, 48, 64), generator=generator).to(torch.uint8)
    target[:, :7] = VOID
    maps = torch.randint(0, 64, (2, 48, 64, 4), generator=generator).to(torch.uint8)
    losses = []
    for each in (None, maps):
        own = config if each is None else make_config(
            network={**NARROW, "dropout": 0.0}, distill={"maps": "unused", "weight": 0.25}
        )  # fmt: skip
        given = target if each is None else torch.cat([target[..., None], each], dim=-1)
        torch.manual_seed(1)
        losses.append(Learner(build(own.network, 4), own, 10).step([(images, given)]))
    torch.manual_seed(1)
    with torch.no_grad():
        logits = build(config.network, 4).train()(images.float())
    part = 0.25 * float(map_distillation(logits, maps, target)) / float(labelled_weight([target]))
    assert losses[1] - losses[0] == pytest.approx(part, rel=1e-4)


def test_a_run_with_maps(make_config: MakeConfig, maps: Path, tmp_path: Path) -> None:
    checkpoint = train(
        make_config(distill={"maps": str(maps)}), tmp_path / "run", stop_after=2, run_log=None
    )
    assert checkpoint.iteration == 2
    shared = shared_config(checkpoint.config)
    assert shared["distill"]["maps"] == "maps"


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Write a network of 17x17 pixels whose three scores, a quarter as fine, are red, green and
    blue in 25ths."""
    helper = onnx.helper
    weight = (np.eye(3) / 25).astype(np.float32)[..., None, None]
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["float"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["planes", "weight"], ["scores"], strides=[4, 4]),
            helper.make_node("ArgMax", ["scores"], ["labels"], axis=1),
        ],
        "primary colours",
        [helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, [1, 17, 17, 3])],
        [helper.make_tensor_value_info("labels", onnx.TensorProto.INT64, None)],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    path = tmp_path / "network.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path
    )
    return path


def test_another_networks_maps_cover_the_image(network: Path) -> None:
    """Red above blue, in an image twice as wide as high and of another size than the network's."""
    image = np.zeros((34, 68, 3), np.uint8)
    image[:17, :, 0] = 255
    image[17:, :, 2] = 255
    teacher = Teacher(network, "scores", [2, 0], threads=1)
    blue_and_red = teacher.probabilities(image)
    assert blue_and_red.shape == (2, 2, 4)
    assert (blue_and_red.argmax(axis=0) == [[1] * 4, [0] * 4]).all()
    assert blue_and_red.max(axis=0).min() > 0.6  # the scores are a quarter as fine
    assert np.allclose(blue_and_red, blue_and_red[:, :, ::-1], atol=1e-6)
    image[:, :34] = (0, 255, 0)  # of which the maps say nothing
    blue_and_red = teacher.probabilities(image)
    assert blue_and_red.sum(axis=0)[:, 0].max() < 0.1
    assert blue_and_red.sum(axis=0)[:, 3].min() > 0.9


def test_what_is_no_map_is_refused(data: SegmentationDataset, maps: Path) -> None:
    first = map_path(maps, data.pairs[0][0])
    refusals: list[tuple[np.ndarray[Any, Any], str]] = [
        (np.zeros((3, 4, 4), np.uint8), r"is uint8 \[3, 4, 4\], want uint8 \[4,h,w\]"),
        (np.zeros((4, 4, 4), np.float32), r"is float32 \[4, 4, 4\]"),
        (np.zeros((4, 4), np.uint8), r"is uint8 \[4, 4\]"),
    ]
    for wrong, message in refusals:
        np.save(first, wrong)
        with pytest.raises(DatasetError, match=message):
            Taught(data, maps)[0]
    first.write_bytes(b"no array")
    with pytest.raises(DatasetError, match="cannot read"):
        Taught(data, maps)[0]
    first.unlink()
    with pytest.raises(DatasetError, match=f"1 of {len(data)} images have no map in"):
        Taught(data, maps)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"loss": {"reduction": "sum"}, "precision": "fp32"}, "loss.reduction=mean, not sum"),
        ({"distill__teacher": "t.pt"}, "both say what to learn from"),
    ],
)
def test_recipes_in_which_maps_have_no_place(
    make_config: MakeConfig, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make_config(distill__maps="maps", **changes)
