"""An image too large to run whole has the labels that it would have if it were run whole."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from tests import serving
from tests.drawing import jpeg, street

HEIGHT, WIDTH = 700, 1000


def test_a_large_image_is_labelled_in_parts_as_it_is_whole() -> None:
    body = jpeg(street(HEIGHT, WIDTH))
    labels = []
    for whole_pixels in (400_000, HEIGHT * WIDTH):
        with serving.running(
            serving.ROOT / "model_repository", max_whole_pixels=whole_pixels, precision="fp32"
        ) as server:
            reply = server.rest.post(
                "/segment?scale=none", content=body, headers={"Content-Type": "image/jpeg"}
            )
            assert reply.status_code == 200, reply.text
            labels.append(np.asarray(Image.open(io.BytesIO(reply.content))))
    in_parts, whole = labels
    np.testing.assert_array_equal(in_parts, whole)
    assert len(np.unique(whole)) > 1
