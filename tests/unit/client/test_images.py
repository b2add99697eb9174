"""Images become what is sent, and what is sent back becomes arrays."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcn_client import DecodeError, FcnClient, InvalidInput
from fcn_client.grpc_messages import target_of
from fcn_client.images import file_bytes, overlay, read_answer, read_rgb
from fcn_client.request import call_of, is_grpc, total_s
from fcn_client.types import ClassInfo, background_of
from model import contract
from service.core.images.decode import decode
from service.core.images.header import read_header
from service.core.outputs.overlay import overlay_png
from tests.drawing import encode, jpeg, png, read_png, street

RGB = street(10, 14)


def turned_jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(RGB, "JPEG", exif=exif)


def grey16() -> Image.Image:
    return Image.fromarray(np.arange(0, 60_000, 400, dtype=np.uint16).reshape(10, 15))


FILES = {
    "JPEG": jpeg(RGB),
    "turned": turned_jpeg(),
    "alpha": encode(Image.fromarray(RGB).convert("RGBA")),
    "palette": encode(Image.fromarray(RGB).quantize(16), transparency=0),
    "grey": encode(Image.fromarray(RGB).convert("L")),
    "16 bits": encode(grey16()),
    "CMYK": encode(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
}


@pytest.mark.parametrize("kind", FILES)
def test_pixels_are_those_the_server_sees(kind: str, tmp_path: Path) -> None:
    """Also when an image was opened here and goes as pixels."""
    body = FILES[kind]
    seen = decode(body, read_header(body, max_bytes=1 << 20), max_pixels=1 << 20)
    np.testing.assert_array_equal(read_rgb(body), seen)
    np.testing.assert_array_equal(read_png(file_bytes(Image.open(io.BytesIO(body)))), seen)
    (tmp_path / "p").write_bytes(body)
    assert file_bytes(tmp_path / "p") == file_bytes(str(tmp_path / "p")) == file_bytes(body) == body


def test_arrays_are_sent_without_loss() -> None:
    for rgb in (RGB, RGB[::-1, ::2]):  # not contiguous, too
        np.testing.assert_array_equal(read_png(file_bytes(rgb)), rgb)


class Damaged(Image.Image):
    """Stands for an image whose file is broken inside: Pillow's plugins then raise anything."""

    def load(self) -> None:
        raise SyntaxError("broken PNG file")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (RGB.astype(np.float32), r"float32 \[10, 14, 3\]: give uint8 RGB"),
        (RGB[:, :, 0], r"uint8 \[10, 14\]: give"),
        (RGB[:0], r"\[0, 14, 3\]"),
        (b"", "has no bytes"),
        (Path("/no/such/file"), "/no/such/file cannot be read: No such file"),
        (Path("/dev/null"), "is empty"),
        ("a\0.png", "cannot be read: embedded null byte"),
        (Damaged(), "Pillow image cannot be read"),
        (Image.open(io.BytesIO(png(RGB)[:60])), "Pillow image cannot be read"),
        (3, "a int is no image"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_image(wrong: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        file_bytes(wrong)


@pytest.mark.parametrize("background", [None, 7])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_overlay_is_the_servers(alpha: float, background: int | None) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 256, RGB.shape[:2]).astype(np.uint8)
    palette = rng.integers(0, 256, (256, 3)).astype(np.uint8)
    expected = read_png(overlay_png(RGB, labels, palette, alpha, background=background))
    np.testing.assert_array_equal(overlay(RGB, labels, palette, alpha, background), expected)


@pytest.mark.parametrize(
    ("classes", "background"),
    [
        ([("background", (9, 9, 9)), ("cat", (0, 0, 0))], 0),
        ([("cat", (1, 0, 0)), ("_Background_", (9, 9, 9))], 1),
        ([("other", (0, 0, 0)), ("cat", (9, 9, 9))], 0),
        ([("other", (0, 0, 0)), ("Background", (9, 9, 9))], 1),
        ([("cat", (1, 0, 0)), ("road", (0, 0, 0))], None),
        ([("backgrounds", (1, 0, 0))], None),
    ],
)
def test_the_background_is_the_servers(
    classes: list[tuple[str, tuple[int, int, int]]], background: int | None
) -> None:
    infos = [(number, name, color) for number, (name, color) in enumerate(classes)]
    assert background_of([ClassInfo(*info) for info in infos]) == background
    theirs = tuple(contract.ClassInfo(*info) for info in infos)
    data = contract.TrainingData("none", "CC0-1.0")
    assert contract.Contract("tiny", "none", theirs, data).background == background


def test_answers() -> None:
    assert read_answer("json", "application/json", b'{"a": 1}') == {"a": 1}
    numbers = np.arange(3, dtype=np.float16)
    buffer = io.BytesIO()
    np.save(buffer, numbers)
    np.testing.assert_array_equal(read_answer("x", "application/x-npy", buffer.getvalue()), numbers)
    np.testing.assert_array_equal(read_answer("color", "image/png", png(RGB)), RGB)


@pytest.mark.parametrize(
    ("output", "kind", "body", "message"),
    [
        ("label_map", "image/png", png(RGB), r"uint8 \[10, 14, 3\], not uint8 \[H,W\]"),
        ("label_map", "image/png", b"?", "is no image/png"),
        ("json", "application/json", b"?", "is no application/json"),
        ("json", "text/html; charset=utf-8", b"?", "is text/html, which this client cannot read"),
    ],
)
def test_answers_that_are_none(output: str, kind: str, body: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        read_answer(output, kind, body)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x", "http://", "http://x:y", "grpc://x/y"]
)
def test_wrong_addresses(url: str) -> None:
    with pytest.raises(InvalidInput):
        FcnClient(url)


def test_addresses() -> None:
    assert [is_grpc(f"{s}://h:1") for s in ("http", "https", "grpc", "grpcs")] == [
        False,
        False,
        True,
        True,
    ]
    assert target_of("grpc://h:1") == ("h:1", False)
    assert target_of("grpcs://h:1/") == ("h:1", True)


def test_options() -> None:
    call = call_of(b"x", "label_map", {"classes": "road"})
    assert call.classes == ("road",) and len(call.request_id) == 32
    assert call_of(b"x", "label_map", {"classes": (3, "car")}).classes == ("3", "car")
    with pytest.raises(InvalidInput, match="no option colour: use alpha"):
        call_of(b"x", "label_map", {"colour": 1})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(InvalidInput, match="request_id 'a b'"):
        call_of(b"x", "label_map", {"request_id": "a b"})
    with pytest.raises(InvalidInput, match="deadline_ms is 0"):
        total_s({"deadline_ms": 0}, 1.0)
