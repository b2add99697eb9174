"""Every kind of image that people send, and every kind that is not one."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.core.images.decode import decode
from service.core.images.header import read_header
from service.errors import ImageTooLarge, InvalidImage, UnsupportedImageFormat
from tests import drawing
from tests.drawing import UInt8Array, encode, png_of, street
from tests.unit.core.decoding import grey_rgb, read

RGB = street(24, 32)
GREY = RGB[:, :, 1]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"big_tiff": True}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_come_back_exactly(kind: str, options: dict[str, Any]) -> None:
    image = read(encode(RGB, kind, **options))
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert not image.flags.writeable, "shared between the network and the overlay"
    assert (image == RGB).all()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 98, "subsampling": 0}),
        ("JPEG", {"quality": 98, "subsampling": 0, "progressive": True}),
        ("WEBP", {"quality": 98}),
    ],
)
def test_lossy_formats_come_back_nearly(kind: str, options: dict[str, Any]) -> None:
    smooth = np.zeros((24, 32, 3), np.uint8)
    smooth[..., 0] = np.arange(24)[:, None] * 9
    smooth[..., 2] = 200
    image = read(encode(smooth, kind, **options))
    assert np.abs(image.astype(int) - smooth).max() <= 8


def turned(rgb: UInt8Array, orientation: int) -> UInt8Array:
    """Turns an upright image as a camera that writes this EXIF orientation stores it."""
    undo = {
        1: rgb,
        2: rgb[:, ::-1],
        3: rgb[::-1, ::-1],
        4: rgb[::-1],
        5: rgb.swapaxes(0, 1),
        6: np.rot90(rgb, 1),
        7: rgb[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(rgb, -1),
    }
    return np.ascontiguousarray(undo[orientation])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})]
)
def test_exif_orientation_is_applied(kind: str, options: dict[str, Any], orientation: int) -> None:
    image = read(encode(turned(RGB, orientation), kind, exif=oriented(orientation), **options))
    assert image.shape == RGB.shape
    assert (image == RGB).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_jpeg(orientation: int) -> None:
    blocks = np.zeros((32, 48, 3), np.uint8)
    blocks[:16, :16] = (250, 0, 0)
    blocks[16:, :16] = (0, 250, 0)
    blocks[:16, 16:] = (0, 0, 250)
    turned_blocks = turned(blocks, orientation)
    exif = oriented(orientation)
    body = encode(turned_blocks, "JPEG", exif=exif, quality=98, subsampling=0)
    rgb = read(body)
    assert rgb.shape == blocks.shape
    assert np.abs(rgb.astype(int) - blocks).mean() < 5


def test_pillows_pixels_become_rgb_a_strip_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.core.images.decode._STRIP_PIXELS", 5 * 32)
    packed: list[int] = []
    pack = Image.Image.tobytes

    def tobytes(self: Image.Image, *args: Any) -> bytes:
        packed.append(self.height)
        return pack(self, *args)

    monkeypatch.setattr(Image.Image, "tobytes", tobytes)
    assert (read(encode(RGB, "PNG")) == RGB).all()
    assert packed == [5, 5, 5, 5, 4]


def test_the_pixels_are_put_where_the_caller_wants_them() -> None:
    for body in (encode(RGB, "PNG"), encode(RGB, "JPEG")):
        there = bytearray(3 * RGB.size + 1)
        header = read_header(body, max_bytes=1 << 20)
        rgb = decode(body, header, max_pixels=1 << 20, buffer=memoryview(there))
        assert np.shares_memory(rgb, np.frombuffer(there, np.uint8))
        assert (rgb == read(body)).all()
        assert not any(there[RGB.size :])


RGBA = np.dstack([RGB, np.linspace(0, 255, 24 * 32).reshape(24, 32).astype(np.uint8)])
BROKEN_EXIF = b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage"


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (encode(GREY, "PNG"), grey_rgb(GREY)),
        (encode(Image.fromarray(GREY > 100), "PNG"), grey_rgb(np.uint8(255) * (GREY > 100))),
        # Alpha is dropped, and the colours beneath stay.
        (encode(RGBA, "PNG"), RGB),
        (encode(RGBA, "TIFF"), RGB),
        (encode(Image.merge("LA", [Image.fromarray(GREY)] * 2), "PNG"), grey_rgb(GREY)),
        (drawing.png(np.full((1, 1, 3), 9, np.uint8)), np.full((1, 1, 3), 9, np.uint8)),
        (encode(RGB, "PNG", icc_profile=b"not a profile at all"), RGB),
        (encode(RGB, "PNG", exif=BROKEN_EXIF), RGB),
        *((encode(RGB, "PNG", exif=oriented(value)), RGB) for value in (0, 9, 77)),
    ],
)
def test_odd_but_whole_images_come_back(body: bytes, expected: UInt8Array) -> None:
    assert np.array_equal(read(body), expected)


def test_16_bit_grey_png_and_tiff_use_the_whole_range() -> None:
    deep = np.linspace(0, 65535, 24 * 32).reshape(24, 32).astype(np.uint16)
    expected = grey_rgb(np.rint(deep / 257).astype(np.uint8))
    assert (read(png_of(deep[:, :, None], 16, 0)) == expected).all()
    assert (read(encode(Image.fromarray(deep), "TIFF")) == expected).all()
    assert expected.min() == 0
    assert expected.max() == 255


def test_16_bit_rgb_png_keeps_the_high_byte() -> None:
    deep = RGB.astype(np.uint16) * 256 + 17
    assert (read(png_of(deep, 16, 2)) == RGB).all()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_tiff_is_refused(dtype: type) -> None:
    body = encode(Image.fromarray(GREY.astype(dtype)), "TIFF")
    with pytest.raises(UnsupportedImageFormat, match="grey, 32-bit .*; save it as 8-bit RGB"):
        read(body)


def test_a_phones_jpeg_with_further_images_is_its_first() -> None:
    first, second = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    body = encode(first, "MPO", save_all=True, append_images=[second], quality=98, subsampling=0)
    image = read(body)
    assert np.abs(image.astype(int) - RGB).mean() < 10


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_several_images_in_a_file_are_refused(kind: str) -> None:
    images = [Image.fromarray(street(seed=n)) for n in range(3)]
    body = encode(images[0], kind, save_all=True, append_images=images[1:])
    with pytest.raises(UnsupportedImageFormat, match=f"{kind} file holds 3 images"):
        read(body)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "the body is empty: send an image"),
        (drawing.animated_gif(), "GIF is not accepted: send JPEG, PNG, WebP, BMP or TIFF"),
        (encode(RGB, "GIF"), "GIF is not accepted"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(40), "HEIC is not accepted"),
        (b"\x00\x00\x00\x18ftypavif" + bytes(40), "AVIF is not accepted"),
        (b"%PDF-1.7 ...", "PDF is not accepted"),
        (b"hello, this is text", "not an image this server knows: send JPEG"),
        (b'{"image": "base64"}', "not an image"),
        (b"RIFF\x10\x00\x00\x00WAVEfmt ", "not an image"),
        (b"\x00", "not an image"),
    ],
)
def test_other_kinds_of_file_are_named_and_refused(body: bytes, says: str) -> None:
    with pytest.raises(UnsupportedImageFormat if body else InvalidImage, match=says):
        read(body)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_a_truncated_file_is_refused(kind: str, kept: float) -> None:
    body = encode(street(64, 64), kind)
    with pytest.raises(InvalidImage, match=f"{kind} file is truncated or damaged"):
        read(body[: max(12, int(len(body) * kept))])


def huge_jpeg() -> bytes:
    body = drawing.jpeg(street(16, 16))
    at = body.index(b"\xff\xc0") + 5
    return body[:at] + struct.pack(">HH", 20_000, 20_000) + body[at + 4 :]


def huge_bmp() -> bytes:
    body = bytearray(encode(street(16, 16), "BMP"))
    body[18:26] = struct.pack("<ii", 20_000, 20_000)
    return bytes(body)


@pytest.mark.parametrize("body", [drawing.huge_png_header(), huge_jpeg(), huge_bmp()])
def test_a_huge_header_is_refused_before_any_pixel_is_made(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", load)
    with pytest.raises(ImageTooLarge, match=r"20000x20000.*400000000 pixels.*takes 1000: scale"):
        read(body, max_pixels=1000)


def test_the_pixel_limit_is_inclusive() -> None:
    body = drawing.png(street(20, 50))
    assert read(body, max_pixels=1000).shape == (20, 50, 3)
    with pytest.raises(ImageTooLarge):
        read(body, max_pixels=999)


def test_the_byte_limit_is_inclusive() -> None:
    body = drawing.png(RGB)
    read(body, max_bytes=len(body))
    with pytest.raises(ImageTooLarge, match=f"{len(body)} bytes.*takes {len(body) - 1}"):
        read(body, max_bytes=len(body) - 1)


def test_the_callers_limit_counts_and_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    # 200 million pixels in a 1-bit PNG: above Pillow's own limit, within this caller's.
    image = Image.new("1", (20_000, 10_000))
    body = encode(image, "PNG")
    monkeypatch.setattr("service.core.images.decode._put_rgb", lambda image, stored, bits: None)
    read(body, max_pixels=200_000_000)
    with pytest.raises(ImageTooLarge):
        read(body, max_pixels=199_999_999)


def test_an_error_says_nothing_of_the_files_text() -> None:
    body = drawing.png(RGB)[:40] + b"SECRET" * 4
    with pytest.raises(InvalidImage) as caught:
        read(body)
    assert "SECRET" not in str(caught.value)
