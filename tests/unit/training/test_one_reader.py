"""Training reads an image as the server does, to the pixel, and refuses what the server refuses."""

from __future__ import annotations

import io
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcn_client.predict import frames
from service.core.images.decode import decode
from service.core.images.header import read_header
from service.errors import ServiceError
from tests import tiffs
from tests.drawing import png_of
from training.datasets.base import DatasetError, read_image

HEIGHT, WIDTH = 6, 9
RAMP = np.linspace(0, 255, HEIGHT * WIDTH * 4).astype(np.uint8).reshape(HEIGHT, WIDTH, 4)
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "LAB")
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")


def image(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(RAMP[..., 0].astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(RAMP[..., 0].astype(np.int32) * 300)
    if mode == "F":
        return Image.fromarray(RAMP[..., 0].astype(np.float32) / 255)
    if mode == "LAB":
        return Image.frombytes("LAB", (WIDTH, HEIGHT), RAMP[..., :3].tobytes())
    if mode == "CMYK":
        return Image.frombytes("CMYK", (WIDTH, HEIGHT), RAMP.tobytes())
    return Image.fromarray(RAMP).convert(mode)


def encoded(mode: str, name: str, orientation: int, **options: Any) -> bytes | None:
    """The file's bytes; None if Pillow writes no such file."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    try:
        image(mode).save(buffer, name, exif=exif, **options)
    except (OSError, KeyError, ValueError):
        return None
    return buffer.getvalue()


def served(body: bytes) -> Any:
    """Gives what the network would get; None if the server refuses."""
    try:
        return decode(body, read_header(body, max_bytes=sys.maxsize), max_pixels=1 << 24)
    except ServiceError:
        return None


def assert_alike(path: Path, body: bytes) -> bool:
    """Compare the two; True if both take it."""
    path.write_bytes(body)
    wanted = served(body)
    if wanted is None:
        with pytest.raises(DatasetError, match=rf"cannot read the image .*{path.name}: ") as raised:
            read_image(path)
        assert raised.value.kind == "image"
        return False
    read = read_image(path)
    assert read.shape == wanted.shape and (read == wanted).all()
    assert read.flags.writeable and read.flags.c_contiguous
    return True


@pytest.mark.parametrize("name", FORMATS)
def test_every_mode_and_orientation(tmp_path: Path, name: str) -> None:
    taken = 0
    for mode in MODES:
        for orientation in range(1, 9):
            body = encoded(mode, name, orientation)
            if body is not None:
                taken += assert_alike(tmp_path / "a.img", body)
    assert taken >= 16  # L and RGB at the least


@pytest.mark.parametrize("channels", [1, 2, 3, 4], ids=["grey", "grey-alpha", "rgb", "rgba"])
def test_16_bits_a_channel(tmp_path: Path, channels: int) -> None:
    deep = RAMP[..., :channels].astype(np.uint16) * 257
    assert assert_alike(tmp_path / "a.png", png_of(deep, 16, (0, 4, 2, 6)[channels - 1]))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits(tmp_path: Path, bits: int) -> None:
    assert assert_alike(tmp_path / "a.png", png_of(RAMP[..., :1] % 2**bits, bits, 0))


@pytest.mark.parametrize("kind", [tiffs.WHITE_IS_ZERO, tiffs.BLACK_IS_ZERO, tiffs.RGB])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize(("bits", "meaning"), [(8, 1), (16, 1), (16, 2), (32, 3)])
def test_tiffs(tmp_path: Path, kind: int, planar: int, bits: int, meaning: int) -> None:
    """White is zero, planes of their own, signed and floating-point samples."""
    channels = 3 if kind == tiffs.RGB else 1
    deep = RAMP[..., :channels].astype(np.int64) * (257 if bits == 16 else 1)
    samples = deep.astype(np.float32) if meaning == 3 else deep.astype(np.int64)
    layout = tiffs.Layout(kind, bits, planar=planar, format=meaning)
    assert assert_alike(tmp_path / "a.tif", tiffs.tiff(samples, layout)) == (meaning == 1)


@pytest.mark.parametrize(("tags", "images"), [({254: (4, [1])}, 1), ({254: (4, [4])}, 1), ({}, 2)])
def test_pages_of_a_tiff(tmp_path: Path, tags: tiffs.Tags, images: int) -> None:
    """A reduced copy or a mask is no image, for `fcn predict` neither; a second image is one."""
    rgb = RAMP[..., :3]
    pages = [tiffs.page(rgb, tiffs.Layout()), tiffs.page(rgb[::2, ::2], tiffs.Layout(), tags)]
    path = tmp_path / "a.tif"
    assert assert_alike(path, tiffs.file(pages)) == (images == 1)
    assert frames.is_moving(path) == (images > 1)
    if images == 1:
        assert (read_image(path) == rgb).all()


@pytest.mark.parametrize("name", ["TIFF", "WEBP", "PNG"])
def test_several_images_in_a_file(tmp_path: Path, name: str) -> None:
    body = encoded("RGB", name, 1, save_all=True, append_images=[image("L"), image("RGB")])
    assert body is not None
    assert_alike(tmp_path / "a.img", body)


@pytest.mark.parametrize("body", [b"", b"hello", b"GIF89a" + bytes(20), b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image(tmp_path: Path, body: bytes) -> None:
    assert not assert_alike(tmp_path / "a.png", body)


def test_text_in_a_png_that_unpacks_to_much(tmp_path: Path) -> None:
    """Pillow raises a ValueError of its own: taken or refused, but never a foreign exception."""
    text = b"comment\0\0" + zlib.compress(b"a" * 2_000_000)
    assert_alike(tmp_path / "a.png", png_of(RAMP[..., :3], before=[(b"zTXt", text)]))


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cannot read the image .*a\.png: .*No such file"):
        read_image(tmp_path / "a.png")


def test_a_decoder_that_raises_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"x")

    def fail(*_args: object, **_options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("training.datasets.base.read_header", fail)
    with pytest.raises(DatasetError, match=r"cannot read the image .*a\.png: ZeroDivisionError"):
        read_image(tmp_path / "a.png")
