"""Pages of a TIFF are frames or not, and overlays are drawn over what the server reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL.PngImagePlugin import PngInfo

from fcn_client.images import read_rgb
from fcn_client.predict.frames import count, frames, is_moving
from service.core.images.decode import decode
from service.core.images.header import read_header
from tests.drawing import encode, street
from tests.tiffs import BLACK_IS_ZERO, RGB, WHITE_IS_ZERO, Layout, file, page, tiff

IMAGE = street(24, 32)
GREY = IMAGE[:, :, 1, None]
FULL = page(IMAGE, Layout())
OTHER = page(255 - IMAGE, Layout(), {254: (4, [2])})
COPY = page(IMAGE[::2, ::2], Layout(), {254: (4, [1])})
MASK = page(GREY, Layout(BLACK_IS_ZERO), {254: (4, [4])})


@pytest.mark.parametrize("pages", [[FULL], [FULL, COPY], [COPY, MASK, FULL], [COPY], [FULL, MASK]])
def test_copies_and_masks_make_no_film(pages: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(file(pages))
    assert not is_moving(path)
    assert (read_rgb(path.read_bytes()) == served(path.read_bytes())).all()


def test_frames_are_the_pages_that_are_images(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(file([FULL, COPY, OTHER, MASK]))
    assert is_moving(path)
    assert count(path) == 2
    seen = list(frames(path))
    assert len(seen) == 2
    assert (seen[0] == IMAGE).all()
    assert (seen[1] == 255 - IMAGE).all()


def served(body: bytes) -> Any:
    return decode(body, read_header(body, max_bytes=1 << 20), max_pixels=1 << 20)


@pytest.mark.parametrize(
    ("samples", "layout"),
    [
        (IMAGE, Layout(RGB, planar=2)),
        (IMAGE.astype(np.uint16) * 257, Layout(RGB, 16, planar=2)),
        (IMAGE.astype(np.uint16) * 257, Layout(RGB, 16, order=">", compression=5)),
        (GREY, Layout(WHITE_IS_ZERO)),
        (GREY.astype(np.uint16) * 257, Layout(WHITE_IS_ZERO, 16)),
        (GREY.astype(np.uint16) * 257, Layout(BLACK_IS_ZERO, 16, orientation=6)),
        (GREY.astype(np.uint16) * 16, Layout(BLACK_IS_ZERO, 12)),
    ],
    ids=str,
)
def test_the_background_of_an_overlay_is_what_the_server_read(samples: Any, layout: Layout) -> None:
    import fcn_client.predict.outputs  # noqa: F401 - `fcn predict` sets Pillow's options

    body = tiff(samples, layout)
    assert (read_rgb(body) == served(body)).all()


def test_an_overlay_over_a_png_with_long_text() -> None:
    import fcn_client.predict.outputs  # noqa: F401 - as above

    text = PngInfo()
    text.add_text("comment", "a" * 2_000_000, zip=True)
    body = encode(IMAGE, "PNG", pnginfo=text)
    assert (read_rgb(body) == IMAGE).all()
    assert (served(body) == IMAGE).all()
