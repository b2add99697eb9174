import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.contract import InputSpec
from service.core.engines.warm_up import accepted_sizes, ordinary_size
from service.core.images.decode import prepare
from service.errors import ImageTooLarge
from tests.drawing import street

sides = st.integers(1, 70)


@given(height=sides, width=sides, smallest=sides, multiple=st.integers(1, 33))
def test_padding_reaches_an_accepted_size(
    height: int, width: int, smallest: int, multiple: int
) -> None:
    rgb = street(height, width) if height > 3 else np.full((height, width, 3), 7, np.uint8)
    spec = InputSpec(min_side_px=smallest, multiple_of_px=multiple)
    prepared = prepare(rgb, spec)
    for got, had in zip(prepared.shape[:2], (height, width), strict=True):
        assert got % multiple == 0
        assert max(smallest, had) <= got < max(smallest, had) + multiple
    assert prepared.flags.c_contiguous
    assert (prepared[:height, :width] == rgb).all()
    assert not prepared[height:].any()
    assert not prepared[:, width:].any()


def test_a_size_that_fits_is_not_copied() -> None:
    rgb = street(32, 64)
    assert prepare(rgb, InputSpec(multiple_of_px=32)) is rgb


@pytest.mark.parametrize(("height", "width"), [(101, 8), (8, 101), (97, 97)])
def test_a_side_above_the_models_is_refused_with_the_side_it_takes(height: int, width: int) -> None:
    spec = InputSpec(max_side_px=100, multiple_of_px=32)
    with pytest.raises(ImageTooLarge, match=rf"{height}x{width}.*up to 96 px"):
        prepare(np.zeros((height, width, 3), np.uint8), spec)


def test_the_largest_side_itself_is_taken() -> None:
    prepare(np.zeros((96, 1, 3), np.uint8), InputSpec(max_side_px=100, multiple_of_px=32))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (InputSpec(), (256, 256)),
        (InputSpec(multiple_of_px=100), (300, 300)),
        (InputSpec(multiple_of_px=100, max_side_px=256), (200, 200)),
        (InputSpec(min_side_px=512), (512, 512)),
        (InputSpec(max_side_px=31, multiple_of_px=32), None),
        (InputSpec(min_side_px=33, max_side_px=63, multiple_of_px=32), None),
    ],
)
def test_an_ordinary_size_is_one_the_model_takes(
    spec: InputSpec, expected: tuple[int, int] | None
) -> None:
    assert ordinary_size(spec) == expected
    if expected is not None:
        assert prepare(np.zeros((*expected, 3), np.uint8), spec).shape[:2] == expected


def test_sizes_are_padded_as_images_are_and_left_out_where_they_are_too_large() -> None:
    spec = InputSpec(stride=1, multiple_of_px=8, min_side_px=16, max_side_px=64)
    sizes = [(10, 33), (16, 40), (64, 64), (65, 16)]
    assert accepted_sizes(sizes, spec) == [(16, 40), (64, 64)]
    for height, width in sizes[:3]:
        tensor = prepare(np.zeros((height, width, 3), np.uint8), spec)
        assert tensor.shape[:2] in accepted_sizes(sizes, spec)
