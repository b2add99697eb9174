"""The short way for plain JPEGs against Pillow's: the same pixels, or none and Pillow decides."""

from __future__ import annotations

import random
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from service.core.images.decode import _by_libjpeg, decode
from service.core.images.header import read_header
from service.errors import ImageTooLarge, ServiceError
from tests.drawing import UInt8Array, encode, street

MOST = 1 << 24
SUBSAMPLINGS = ("444", "422", "420", "440", "411", "Gray")
XMP = b"http://ns.adobe.com/xap/1.0/\x00"


def photo(height: int, width: int, seed: int = 0) -> UInt8Array:
    """uint8 RGB [H,W,3] with shades, so that the chroma between its samples matters."""
    rng = np.random.default_rng(seed)
    shades = Image.fromarray(rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), np.uint8))
    return np.asarray(shades.resize((width, height), Image.Resampling.BICUBIC))


def written(rgb: UInt8Array, subsampling: str, quality: int = 90) -> bytes:
    """Pillow writes neither 4:4:0 nor 4:1:1."""
    if subsampling == "Gray":
        return encode(np.ascontiguousarray(rgb[:, :, 1]), "JPEG", quality=quality)
    body: bytes = simplejpeg.encode_jpeg(rgb, quality=quality, colorsubsampling=subsampling)
    return body


def with_segment(body: bytes, marker: int, payload: bytes, at: int = 2) -> bytes:
    head = struct.pack(">BBH", 0xFF, marker, 2 + len(payload))
    return body[:at] + head + payload + body[at:]


def patched(body: bytes, after: bytes, offset: int, value: int) -> bytes:
    """One byte replaced, `offset` behind where `after` begins."""
    at = body.index(after) + offset
    return body[:at] + bytes([value]) + body[at + 1 :]


def outcome(work: Callable[[], UInt8Array]) -> tuple[Any, ...]:
    """Pixels or error, to compare."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in the server, where Pillow's go to the log
        try:
            rgb = work()
        except ServiceError as error:
            return type(error), str(error)
    return rgb.shape, rgb.dtype, rgb.flags.writeable, rgb.flags.c_contiguous, rgb.tobytes()


def ours(body: bytes, max_pixels: int = MOST) -> tuple[Any, ...]:
    return outcome(lambda: decode(body, read_header(body, max_bytes=MOST), max_pixels=max_pixels))


def pillows(body: bytes, max_pixels: int = MOST) -> tuple[Any, ...]:
    def read() -> UInt8Array:
        header = read_header(body, max_bytes=MOST)
        return decode(body, replace(header, plain=False), max_pixels=max_pixels)

    return outcome(read)


def is_plain(body: bytes, max_pixels: int = MOST) -> bool:
    """Says whether libjpeg alone decodes it."""
    try:
        header = read_header(body, max_bytes=MOST)
    except ServiceError:
        return False
    fits = header.pixels <= max_pixels
    return (
        header.plain
        and fits
        and _by_libjpeg(body, header, np.empty((header.height, header.width, 3), np.uint8), 1)
    )


PLAIN = street(37, 53)
BODY = encode(PLAIN, "JPEG", quality=90)


def exif(orientation: int | None, endian: str = "<", **tags: Any) -> bytes:
    made = Image.Exif()
    made.endian = endian
    made[0x010F] = "a maker of cameras"  # longer than four bytes: lies outside the directory
    made[0x011A], made[0x011B], made[0x0128] = 72.0, 72.0, 2
    if orientation is not None:
        made[0x0112] = orientation
    return made.tobytes()


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_every_size_and_subsampling_has_pillows_pixels(subsampling: str) -> None:
    sizes = [(n, n) for n in range(1, 34)] + [(n, 34 - n) for n in range(1, 34)] + [(64, 200)]
    for height, width in sizes:
        body = written(photo(height, width, seed=height), subsampling)
        assert is_plain(body), (height, width)
        assert ours(body) == pillows(body), (height, width)


PLAIN_FILES = {
    "progressive": encode(PLAIN, "JPEG", progressive=True),
    "progressive, 4:4:4": encode(photo(40, 70), "JPEG", progressive=True, subsampling=0),
    "progressive, grey": encode(PLAIN[:, :, 0].copy(), "JPEG", progressive=True),
    "restart markers by row": encode(PLAIN, "JPEG", restart_marker_rows=1),
    "restart markers by block": encode(PLAIN, "JPEG", restart_marker_blocks=2, subsampling=1),
    "own Huffman tables": encode(PLAIN, "JPEG", optimize=True),
    "quality 1": encode(PLAIN, "JPEG", quality=1),
    "quality 100": encode(PLAIN, "JPEG", quality=100, subsampling=0),
    "RGB, not YCbCr": encode(PLAIN, "JPEG", keep_rgb=True),
    "profile": encode(PLAIN, "JPEG", icc_profile=bytes(3000)),
    "profile in two segments": encode(PLAIN, "JPEG", icc_profile=bytes(70_000)),
    "comment": encode(PLAIN, "JPEG", comment=b"a street"),
    "EXIF, upright": encode(PLAIN, "JPEG", exif=exif(1)),
    "EXIF, upright, big endian": encode(PLAIN, "JPEG", exif=exif(1, ">")),
    "EXIF without an orientation": encode(PLAIN, "JPEG", exif=exif(None)),
    "EXIF upright, XMP not": encode(PLAIN, "JPEG", exif=exif(1), xmp=b'tiff:Orientation="6"'),
    "XMP without an orientation": encode(PLAIN, "JPEG", xmp=b"<x:xmpmeta/>"),
    "no JFIF segment": BODY[:2] + BODY[20:],
    "Adobe's marker, YCbCr": with_segment(BODY[:2] + BODY[20:], 0xEE, b"Adobe\0d\0\0\0\0\x01"),
    "bytes after the end": BODY + b"\x00\xffgarbage" * 50,
    "a second image after the end": BODY + encode(street(9, 9), "JPEG"),
}


@pytest.mark.parametrize("name", PLAIN_FILES)
def test_plain_files_take_the_short_way_to_pillows_pixels(name: str) -> None:
    assert is_plain(PLAIN_FILES[name])
    assert ours(PLAIN_FILES[name]) == pillows(PLAIN_FILES[name])


def mpo() -> bytes:
    second = Image.fromarray(255 - PLAIN)
    return encode(Image.fromarray(PLAIN), "MPO", save_all=True, append_images=[second])


CMYK = encode(Image.fromarray(PLAIN).convert("CMYK"), "JPEG")
UNDEFINED_XRES = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack(
    "<HHII HHII I", 0x0128, 3, 1, 2, 0x011A, 7, 1, 5, 0
)
# By where their pixels start. Some of these Pillow takes and some it refuses; both stay so.
OTHER_FILES = {
    **{f"EXIF orientation {n}": encode(PLAIN, "JPEG", exif=exif(n)) for n in (0, *range(2, 10))},
    "EXIF orientation 8, big endian": encode(PLAIN, "JPEG", exif=exif(8, ">")),
    "XMP orientation": encode(PLAIN, "JPEG", xmp=b'<x tiff:Orientation="6"/>'),
    "XMP orientation, EXIF without": encode(
        PLAIN, "JPEG", exif=exif(None), xmp=b"<tiff:Orientation>3</tiff:Orientation>"
    ),
    "EXIF of two segments": with_segment(
        encode(PLAIN, "JPEG", exif=exif(1)), 0xE1, b"Exif\0\0" + b"tail"
    ),
    "EXIF that is none": encode(PLAIN, "JPEG", exif=b"Exif\0\0garbage and more"),
    "EXIF of nothing": with_segment(BODY, 0xE1, b"Exif\0\0"),
    "EXIF whose directory is outside": with_segment(BODY, 0xE1, b"Exif\0\0II*\0\xff\xff\0\0\0\0"),
    "EXIF cut off": with_segment(BODY, 0xE1, exif(6)[:40]),
    # Without JFIF Pillow computes the resolution as it opens the file, and fails on this one.
    "EXIF that Pillow fails on": with_segment(BODY[:2] + BODY[20:], 0xE1, UNDEFINED_XRES),
    "several images": mpo(),
    "Photoshop's resources": with_segment(BODY, 0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed"),
    "short JFIF segment": with_segment(BODY, 0xE0, b"JFIF\0\x01"),
    "short profile": with_segment(BODY, 0xE2, b"ICC_PROFILE\0\x01"),
    "short Adobe segment": with_segment(BODY, 0xEE, b"Adobe\0"),
    "CMYK": CMYK,
    "YCCK": patched(CMYK, b"Adobe", 11, 2),
    "Adobe's marker, YCCK of three": with_segment(
        BODY[:2] + BODY[20:], 0xEE, b"Adobe\0d\0\0\0\0\x02"
    ),
    "12 bits": patched(BODY, b"\xff\xc0", 4, 12),
    "arithmetic coding": patched(BODY, b"\xff\xc0", 1, 0xC9),
    "lossless": patched(BODY, b"\xff\xc0", 1, 0xC3),
    "two components": patched(BODY, b"\xff\xc0", 9, 2),
    "a frame that is too long": patched(BODY, b"\xff\xc0", 3, 20),
    "two frames": with_segment(BODY, 0xC0, b"\x08\0\x09\0\x09\x01\x01\x11\0"),
    "no rows": patched(BODY, b"\xff\xc0", 6, 0),
    "no frame": BODY[: BODY.index(b"\xff\xc0")] + BODY[BODY.index(b"\xff\xda") :],
    "fill bytes": BODY[:2] + b"\xff\xff" + BODY[2:],
    "bytes between segments": BODY[:20] + b"\x01\x02" + BODY[20:],
    "a segment without a length": BODY[:2] + b"\xff\xfe\x00\x01" + BODY[2:],
    "a segment longer than the file": BODY[:2] + b"\xff\xfe\xff\xff" + BODY[2:],
    "very many segments": BODY[:2] + b"\xff\xfe\x00\x02" * 300 + BODY[2:],
    "an unknown table": patched(BODY, b"\xff\xdb", 4, 0x0F),
    "a damaged Huffman table": patched(BODY, b"\xff\xc4", 5, 255),
    "no end marker": BODY[:-2],
    "truncated": BODY[: len(BODY) * 2 // 3],
    "truncated, progressive": PLAIN_FILES["progressive"][:600],
    "only its start": BODY[:3],
    "damaged pixels": BODY[:-60] + bytes(58) + BODY[-2:],
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_of_all_other_files_pillow_decides(name: str) -> None:
    assert not is_plain(OTHER_FILES[name])
    assert ours(OTHER_FILES[name]) == pillows(OTHER_FILES[name])


def test_some_of_them_are_images_and_some_are_refused() -> None:
    images = {name for name, body in OTHER_FILES.items() if len(pillows(body)) > 2}
    assert {"CMYK", "YCCK", "several images", "XMP orientation", "fill bytes"} <= images
    assert {"EXIF that Pillow fails on", "short profile"} <= images
    assert not images & {"truncated", "12 bits", "no end marker", "two components"}


def mutated(rng: random.Random, body: bytes) -> bytes:
    """A few bytes changed, removed, added or repeated, half of them before the pixels."""
    changed = bytearray(body)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        head = body.index(b"\xff\xda") if rng.random() < 0.5 else len(changed)
        at, kind = rng.randrange(3, min(head, len(changed))), rng.random()
        if kind < 0.6:
            changed[at] = rng.randrange(256)
        elif kind < 0.75:
            del changed[at : at + rng.randint(1, 8)]
        elif kind < 0.9:
            changed[at:at] = rng.randbytes(rng.randint(1, 8))
        else:
            start = rng.randrange(2, len(changed))
            changed[at:at] = changed[start : start + rng.randint(2, 80)]
    return bytes(changed[: rng.randrange(3, len(changed))] if rng.random() < 0.1 else changed)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_end_as_with_pillow(seed: int) -> None:
    rng = random.Random(seed)
    upright = encode(PLAIN, "JPEG", exif=exif(1), xmp=b"<x tiff:Orientation='1'>")
    bodies = [BODY, upright, *PLAIN_FILES.values(), written(photo(21, 30), "440")]
    ways = {True: 0, False: 0}
    for _ in range(400):
        body = mutated(rng, rng.choice(bodies))
        ways[is_plain(body, 50_000)] += 1
        assert ours(body, 50_000) == pillows(body, 50_000), body.hex()
    assert min(ways.values()) > 40, "both ways were taken"


@pytest.mark.parametrize("seed", range(2))
def test_damaged_exif_ends_as_with_pillow(seed: int) -> None:
    rng = random.Random(seed)
    bodies = [encode(PLAIN, "JPEG", exif=exif(1, e), comment=b"c") for e in "<>"]
    bodies += [body[:2] + body[20:] for body in bodies]  # without JFIF, see above
    ways = {True: 0, False: 0}
    for _ in range(400):
        body = bytearray(rng.choice(bodies))
        start = body.index(b"Exif\0\0") + 6
        for _ in range(rng.choice([1, 1, 2])):
            body[rng.randrange(start, start + 90)] = rng.choice([0, 1, 3, rng.randrange(256)])
        ways[is_plain(bytes(body))] += 1
        assert ours(bytes(body)) == pillows(bytes(body)), body.hex()
    assert min(ways.values()) > 40, "both ways were taken"


def test_a_plain_file_does_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = pillows(BODY)
    monkeypatch.setattr(Image, "open", None)
    assert ours(BODY) == expected


def test_an_array_that_does_not_fit_is_pillows_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> UInt8Array:
        raise MemoryError

    monkeypatch.setattr(simplejpeg, "decode_jpeg", full)
    assert not is_plain(BODY)
    assert ours(BODY) == pillows(BODY)


@pytest.mark.parametrize("claimed", [(37, 54), (60_000, 60_000)])
def test_nothing_is_made_that_the_header_did_not_say(
    claimed: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda body, *a, **o: decoded.append(body))
    monkeypatch.setattr(simplejpeg, "decode_jpeg_header", lambda body: (*claimed, "YCbCr", "420"))
    assert not is_plain(BODY)
    assert decoded == []


def test_the_pixel_limit_is_inclusive_and_checked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_plain(BODY, 37 * 53)
    assert ours(BODY, 37 * 53 - 1) == pillows(BODY, 37 * 53 - 1)
    asked: list[bytes] = []
    monkeypatch.setattr(simplejpeg, "decode_jpeg_header", lambda body: asked.append(body))
    with pytest.raises(ImageTooLarge):
        decode(BODY, read_header(BODY, max_bytes=MOST), max_pixels=37 * 53 - 1)
    assert asked == []


def test_the_interpreter_is_free_while_it_decodes() -> None:
    body = encode(Image.new("RGB", (4000, 4000)), "JPEG")
    header = read_header(body, max_bytes=MOST)
    assert header.plain
    started, done = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        decode(body, header, max_pixels=MOST)
        done.set()

    # Unasked, no thread gives the interpreter away: whoever runs beside the decoder was let.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        turns = 0
        while not done.is_set():
            time.sleep(0.001)
            turns += 1
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert turns > 3
