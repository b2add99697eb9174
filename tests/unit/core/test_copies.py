"""How much memory an image's way through the core takes beyond the image itself.

That prepare, the batch and restore hand on the memory they were given is in their own tests.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
from PIL import _imaging

from service.core.images.decode import decode
from service.core.images.header import read_header
from service.core.outputs.probabilities import npy, probabilities
from service.core.types import Dtype
from tests.drawing import encode, street

HEIGHT, WIDTH, CLASSES = 240, 320, 11


def bytes_per_pixel(work: Callable[[], object]) -> tuple[float, float]:
    """Most that Python and numpy held meanwhile, and what is left with the result."""
    work()  # what is imported and cached once does not count
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        made = work()
        after, most = tracemalloc.get_traced_memory()
        del made
    finally:
        tracemalloc.stop()
    return (most - before) / (HEIGHT * WIDTH), (after - before) / (HEIGHT * WIDTH)


def test_a_plain_jpeg_is_decoded_into_the_memory_that_the_network_reads() -> None:
    body = encode(street(HEIGHT, WIDTH), "JPEG", quality=90)
    _imaging.reset_stats()
    header = read_header(body, max_bytes=1 << 20)
    most, left = bytes_per_pixel(lambda: decode(body, header, max_pixels=1 << 20))
    assert _imaging.get_stats()["new_count"] == 0, "no image of Pillow's, which takes four bytes"
    assert 3 <= left < 3.5
    assert most < 3.5


def test_probabilities_are_made_once_and_copied_once_into_the_reply() -> None:
    scores = np.random.default_rng(0).normal(size=(CLASSES, HEIGHT, WIDTH)).astype(np.float32)
    label_map = scores.argmax(axis=0).astype(np.uint8)
    made = probabilities(scores, label_map, Dtype.UINT8, None)
    _, left = bytes_per_pixel(lambda: probabilities(scores, label_map, Dtype.UINT8, None))
    assert left < CLASSES + 1, "one byte of each class"
    most, _ = bytes_per_pixel(lambda: npy(made))
    assert most < CLASSES + 1, "the reply's bytes"
