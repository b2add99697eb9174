"""Images in parts: every pixel answered once, within the limit, and the labels of the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.contract import Contract, InputSpec
from service.core.images import tiles as core_tiles
from service.core.images.decode import network_pixels
from service.core.images.tiles import tiles
from service.errors import ImageTooLarge
from training.datasets.drawn import draw

SHIPPED = Path("model_repository/camvid-fcn8s-mobilenet_v1/1/model.onnx")


@given(
    height=st.integers(1, 600),
    width=st.integers(1, 600),
    stride=st.sampled_from([8, 32]),
    contexts=st.integers(0, 3),
    spare=st.integers(0, 60_000),
)
def test_every_pixel_is_answered_once_by_a_part_that_fits(
    height: int, width: int, stride: int, contexts: int, spare: int
) -> None:
    spec = InputSpec(stride=stride, context_px=contexts * stride)
    context = contexts * stride
    max_pixels = (2 * context + stride) ** 2 + spare
    answered = np.zeros((height, width), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core_tiles, "_MOST_READ", 49)  # the most that is possible here
        parts = tiles(height, width, spec, max_pixels)
    for part in parts:
        for (read, answers), length in ((part.rows, height), (part.columns, width)):
            assert read.start % stride == 0
            assert read.start == 0 or answers.start - read.start >= context
            assert read.stop == length or read.stop - answers.stop >= context
        read_px = [read.stop - read.start for read, _ in (part.rows, part.columns)]
        assert network_pixels(read_px[0], read_px[1], spec) <= max_pixels
        answered[part.rows[1], part.columns[1]] += 1
    assert (answered == 1).all()
    assert (len(parts) == 1) == (network_pixels(height, width, spec) <= max_pixels)


def test_a_long_strip_is_cut_across() -> None:
    spec = InputSpec(stride=32, context_px=64)
    parts = tiles(100, 10_000, spec, 100 * 1000)
    assert all(part.rows[0] == slice(0, 100) for part in parts)
    assert max(part.columns[0].stop - part.columns[0].start for part in parts) <= 1000


def test_a_network_that_needs_the_whole_image_says_so() -> None:
    with pytest.raises(ImageTooLarge, match="needs the image whole.*FCN_MAX_WHOLE_PIXELS"):
        tiles(100, 100, InputSpec(stride=32), 128 * 128 - 1)
    assert len(tiles(100, 100, InputSpec(stride=32), 128 * 128)) == 1


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_a_single_row_is_as_much_as_the_network_makes_of_it(size: tuple[int, int]) -> None:
    spec = InputSpec(stride=32, context_px=256)
    assert network_pixels(*size, spec) == 32 * 60_000
    parts = tiles(*size, spec, 1 << 20)
    assert len(parts) == 2


def test_a_limit_below_the_context_says_what_it_takes() -> None:
    with pytest.raises(ImageTooLarge, match="tiles of 160x160 .*FCN_MAX_WHOLE_PIXELS"):
        tiles(1000, 1000, InputSpec(stride=32, context_px=64), 160 * 160 - 1)


def test_an_image_that_would_be_computed_many_times_over_is_refused() -> None:
    spec = InputSpec(stride=32, context_px=544)
    with pytest.raises(ImageTooLarge, match=r"544 around it .* \d{3} times .*FCN_MAX_WHOLE_PIXELS"):
        tiles(3000, 4000, spec, 1152 * 1152)
    assert len(tiles(3000, 4000, spec, 1600 * 1600)) < 100


@pytest.mark.parametrize(("height", "width"), [(801, 963), (608, 1200)])
def test_the_shipped_network_gives_the_labels_of_the_whole_image(height: int, width: int) -> None:
    session = ort.InferenceSession(str(SHIPPED), providers=["CPUExecutionProvider"])
    contract = Contract.from_metadata(session.get_modelmeta().custom_metadata_map, str(SHIPPED))
    assert contract.input.context_px is not None
    rgb = draw(height, width, np.random.default_rng(3)).image
    [whole] = session.run(["label_map"], {"image": rgb[None]})
    together = np.full((height, width), 255, np.uint8)
    parts = tiles(height, width, contract.input, 640 * 700)
    assert len(parts) > 3
    for part in parts:
        [labels] = session.run(["label_map"], {"image": part.cut(rgb)[None]})
        part.put(labels[0], together)
    assert len(np.unique(whole)) > 2
    assert np.array_equal(together, whole[0])
