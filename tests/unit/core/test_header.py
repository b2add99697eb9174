"""Sizes as the files' headers say them, and never a fault."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.core.images import header
from tests import drawing
from tests.drawing import encode, street

RGB = street(37, 53)
FILES: list[tuple[str, dict[str, Any]]] = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("JPEG", {"exif": b"Exif\0\0" + bytes(5000), "comment": b"x" * 300}),
    ("PNG", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("WEBP", {"exif": b"Exif\0\0" + bytes(50)}),
]


@pytest.mark.parametrize(("kind", "options"), FILES)
def test_every_format(kind: str, options: dict[str, Any]) -> None:
    assert header.pixels(encode(RGB, kind, **options)) == 37 * 53


def test_sizes_beyond_a_byte() -> None:
    assert header.pixels(drawing.huge_png_header()) == 20_000 * 20_000
    for kind in ("JPEG", "WEBP", "TIFF", "BMP"):
        assert header.pixels(encode(np.zeros((300, 1000, 3), np.uint8), kind)) == 300_000
    assert header.pixels(encode(Image.new("RGBA", (700, 300)), "WEBP", lossless=True)) == 210_000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"text",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff" + b"\xff" * 100_000,
        b"\xff\xd8" + b"\xff\xe0\x00\x02" * 100_000,
        b"\xff\xd8" + b"\xff\xe0\x00\x00" * 100_000,
        b"II*\x00\xff\xff\xff\xff",
        b"RIFF....WEBPjunk" + bytes(40),
    ],
)
def test_what_says_no_size(body: bytes) -> None:
    assert header.pixels(body) is None


@settings(max_examples=100, deadline=None)
@given(which=st.sampled_from(FILES), cut=st.integers(0, 400), at=st.integers(0, 60),
       value=st.integers(0, 255))  # fmt: skip
def test_damage_is_no_fault(
    which: tuple[str, dict[str, Any]], cut: int, at: int, value: int
) -> None:
    body = bytearray(encode(RGB, which[0], **which[1]))
    body[at % len(body)] = value
    found = header.pixels(bytes(body[:cut]))
    assert found is None or found >= 0
