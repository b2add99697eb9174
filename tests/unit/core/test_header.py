"""Sizes as the files' headers say them, and never a fault."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.core.images.header import Header, read_header
from service.errors import InvalidImage, ServiceError
from tests import drawing
from tests.drawing import encode, street

RGB = street(37, 53)


def read(body: bytes) -> Header:
    return read_header(body, max_bytes=1 << 20)


def size(body: bytes) -> tuple[int, int]:
    found = read(body)
    return found.height, found.width


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
    body = encode(RGB, kind, **options)
    assert size(body) == RGB.shape[:2]
    assert read(body).format == kind


def test_sizes_beyond_a_byte() -> None:
    assert size(drawing.huge_png_header()) == (20_000, 20_000)
    for kind in ("JPEG", "WEBP", "TIFF", "BMP"):
        assert size(encode(np.zeros((300, 1000, 3), np.uint8), kind)) == (300, 1000)
    assert size(encode(Image.new("RGBA", (700, 300)), "WEBP", lossless=True)) == (300, 700)


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xd8\xff",
        b"\xff\xd8\xff" + b"\xff" * 100_000,
        b"\xff\xd8" + b"\xff\xe0\x00\x02" * 100_000,
        b"\xff\xd8" + b"\xff\xe0\x00\x00" * 100_000,
        b"\x89PNG\r\n\x1a\n",
        b"II*\x00\xff\xff\xff\xff",
        b"RIFF....WEBPjunk" + bytes(40),
    ],
)
def test_what_says_no_size(body: bytes) -> None:
    with pytest.raises(InvalidImage):
        read(body)


@pytest.mark.parametrize(
    ("orientation", "plain"), [(None, True), (1, True), (6, False), (0, False)]
)
def test_a_jpegs_orientation_is_read_with_its_size(orientation: int | None, plain: bool) -> None:
    tags = Image.Exif()
    if orientation is not None:
        tags[0x0112] = orientation
    found = read(encode(RGB, "JPEG", exif=tags))
    assert (found.height, found.width, found.plain) == (37, 53, plain)
    assert found.orientation == {None: 0, 0: None}.get(orientation, orientation)


@settings(max_examples=100, deadline=None)
@given(which=st.sampled_from(FILES), cut=st.integers(0, 400), at=st.integers(0, 60),
       value=st.integers(0, 255))  # fmt: skip
def test_damage_is_no_fault(
    which: tuple[str, dict[str, Any]], cut: int, at: int, value: int
) -> None:
    body = bytearray(encode(RGB, which[0], **which[1]))
    body[at % len(body)] = value
    try:
        assert min(size(bytes(body[:cut]))) > 0
    except ServiceError as error:
        assert "the body is" in str(error) or which[0] in str(error) or "not accepted" in str(error)
