"""Compares what a header says that decoding takes with what it takes; files without an end."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.core.images.decode import decode
from service.core.images.header import read_header
from service.core.images.structure import MAX_CHUNKS, scans
from service.core.images.tiff import MAX_SCANS
from service.errors import InvalidImage, ServiceError, UnsupportedImageFormat
from tests.drawing import encode, street

SIDE = 1800
TURNED = Image.Exif()
TURNED[0x0112] = 6


def image(mode: str) -> Image.Image:
    """Coarse, so that files are small and their pixels still take what pixels take."""
    rgb = Image.fromarray(street(SIDE // 20, SIDE // 20)).resize((SIDE, SIDE))
    if mode == "I;16":
        return Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    return rgb.convert(mode)


def runs(side: int) -> bytes:
    """A BMP of run lengths, which Pillow does not write."""
    palette = b"".join(bytes((n, n, n, 0)) for n in range(256))
    pixels = b"".join(b"\x64" + bytes((n % 256,)) for n in range(side // 100)) + b"\0\0"
    pixels = pixels * side + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    return struct.pack("<2sIHHI", b"BM", 0, 0, 0, 14 + len(head) + 1024) + head + palette + pixels


KINDS: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: encode(image("RGB"), "JPEG"),
    "JPEG, grey, turned": lambda: encode(image("L"), "JPEG", exif=TURNED),
    "JPEG, progressive": lambda: encode(image("RGB"), "JPEG", progressive=True, subsampling=0),
    "JPEG, progressive, turned": lambda: encode(
        image("RGB"), "JPEG", progressive=True, subsampling=0, exif=TURNED
    ),
    "JPEG, CMYK": lambda: encode(image("CMYK"), "JPEG"),
    "JPEG, CMYK, progressive": lambda: encode(image("CMYK"), "JPEG", progressive=True),
    "PNG": lambda: encode(image("RGB"), "PNG"),
    "PNG, grey": lambda: encode(image("L"), "PNG"),
    "PNG, alpha, turned": lambda: encode(image("RGBA"), "PNG", exif=TURNED),
    "PNG, grey and alpha": lambda: encode(image("LA"), "PNG"),
    "PNG, palette": lambda: encode(image("P"), "PNG"),
    "PNG, 1 bit": lambda: encode(image("1"), "PNG"),
    "PNG, 16 bits": lambda: encode(image("I;16"), "PNG"),
    "WebP": lambda: encode(image("RGB"), "WEBP", method=0),
    "WebP, lossless, alpha": lambda: encode(image("RGBA"), "WEBP", lossless=True, method=0),
    "BMP": lambda: encode(image("RGB"), "BMP"),
    "BMP, palette": lambda: encode(image("P"), "BMP"),
    "BMP, run lengths": lambda: runs(SIDE),
    "TIFF": lambda: encode(image("RGB"), "TIFF"),
    "TIFF, one strip": lambda: encode(
        image("RGB"), "TIFF", compression="tiff_deflate", strip_size=1 << 30
    ),
    "TIFF, alpha": lambda: encode(image("RGBA"), "TIFF", compression="tiff_lzw"),
    "TIFF, 16 bits": lambda: encode(image("I;16"), "TIFF", compression="tiff_deflate"),
    "TIFF, CMYK": lambda: encode(image("CMYK"), "TIFF", compression="tiff_deflate"),
    "TIFF, fax": lambda: encode(image("1"), "TIFF", compression="group4"),
    "TIFF, JPEG, one strip": lambda: encode(
        image("RGB"), "TIFF", compression="jpeg", strip_size=1 << 30
    ),
    "TIFF, YCbCr, one strip": lambda: encode(
        image("YCbCr"), "TIFF", compression="tiff_deflate", strip_size=1 << 30
    ),
}

_MEASURE = """
import ctypes, json, sys
from pathlib import Path
from service.core.images.decode import decode
from service.core.images.header import read_header

ctypes.CDLL(None).mallopt(-3, 1 << 16)  # what is freed is gone

def resident(which):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))

bodies = [Path(name).read_bytes() for name in sys.argv[1:]]
decode(bodies[0], read_header(bodies[0], max_bytes=1 << 30), max_pixels=1 << 30)
took = []
for body in bodies:
    header = read_header(body, max_bytes=1 << 30)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    decode(body, header, max_pixels=1 << 30)
    took.append((header.decode_bytes, resident("VmHWM") - before))
print(json.dumps(took))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="of Linux")
def test_no_kind_takes_more_than_its_header_says(tmp_path: Path) -> None:
    names = []
    for n, write in enumerate(KINDS.values()):
        names.append(tmp_path / str(n))
        names[-1].write_bytes(write())
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *names], capture_output=True, text=True, check=True
    )
    for kind, (says, took) in zip(KINDS, json.loads(done.stdout), strict=True):
        # Tables and rows, whatever the size.
        assert took < says + 3_000_000, f"{kind}: {says} bytes by its header, took {took}"
        assert took > 3 * SIDE * SIDE * 0.9, f"{kind}: nothing was measured"


def read(body: bytes) -> Any:
    return decode(body, read_header(body, max_bytes=1 << 26), max_pixels=40_000_000)


def jpeg_of_scans(more: int, side: int = 64) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    body = encode(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last = body[body.rfind(b"\xff\xda") : -2]
    return body[:-2] + last * more + body[-2:]


def png_of_chunks(*chunks: tuple[bytes, bytes], first: bool = False) -> bytes:
    """A PNG with chunks behind its IHDR, or before it."""
    body, more = encode(street(64, 64), "PNG"), b""
    for kind, data in chunks:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        more += struct.pack(">I", len(data)) + kind + data + crc
    at = 8 if first else 33
    return body[:at] + more + body[at:]


def tiff_of_pages(pages: int) -> bytes:
    """A chain of pages of 64x64, each a reduced copy of the one before."""
    made = bytearray(b"II*\0" + struct.pack("<I", 8))
    for n in range(pages):
        tags = ((254, int(n > 0)), (256, 64), (257, 64), (262, 1), (273, 8))
        made += struct.pack("<H", len(tags))
        for tag, value in tags:
            made += struct.pack("<HHII", tag, 4, 1, value)
        made += struct.pack("<I", len(made) + 4 if n + 1 < pages else 0)
    return bytes(made) + bytes(600)


def tiff_of_scans() -> bytes:
    """A TIFF whose one strip is a JPEG of many scans."""
    jpeg = jpeg_of_scans(200)
    tags = [(256, 64), (257, 64), (258, 8), (259, 7), (262, 1), (277, 1), (278, 64)]
    tags += [(273, 8 + 2 + 12 * 9 + 4), (279, len(jpeg))]
    made = b"II*\0" + struct.pack("<IH", 8, len(tags))
    made += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags))
    return made + bytes(4) + jpeg


def with_metadata_between_scans(n: int) -> bytes:
    """A JPEG with comments before its last scan that look like its end."""
    body = jpeg_of_scans(5)
    last = body.rfind(b"\xff\xda")
    return body[:last] + b"\xff\xfe\x00\x04\xff\xd9" * n + body[last:]


IHDR = struct.pack(">IIBBBBB", 64, 64, 16, 6, 0, 0, 0)
WITHOUT_END: dict[str, tuple[Callable[[], bytes], type[ServiceError], str]] = {
    "JPEG, scans": (lambda: jpeg_of_scans(1000), UnsupportedImageFormat, f"than {MAX_SCANS} scans"),
    "JPEG, scans with metadata between": (
        lambda: with_metadata_between_scans(999),
        UnsupportedImageFormat,
        "scans",
    ),
    "JPEG, comments": (
        lambda: b"\xff\xd8" + b"\xff\xfe\x00\x02" * 300 + encode(street(64, 64), "JPEG")[2:],
        InvalidImage,
        "more than 256 segments",
    ),
    "JPEG, two frames": (
        lambda: encode(street(64, 64), "JPEG").replace(
            b"\xff\xc0", b"\xff\xc0\x00\x0b\x08\x17\x70\x17\x70\x01\x01\x11\x00\xff\xc0"
        ),
        InvalidImage,
        "says twice how large it is",
    ),
    "PNG, chunks": (
        lambda: png_of_chunks(*[(b"abCd", b"")] * MAX_CHUNKS),
        UnsupportedImageFormat,
        f"more than {MAX_CHUNKS} chunks",
    ),
    "PNG, a chunk before IHDR": (
        lambda: png_of_chunks((b"abCd", b""), first=True),
        InvalidImage,
        "damaged",
    ),
    "PNG, two IHDR": (
        lambda: png_of_chunks((b"IHDR", IHDR)),
        InvalidImage,
        "says twice how large it is",
    ),
    "TIFF, pages": (lambda: tiff_of_pages(200_000), UnsupportedImageFormat, "more than 128 pages"),
    "TIFF, scans": (tiff_of_scans, UnsupportedImageFormat, f"more than {MAX_SCANS} scans"),
    "TIFF, a ring of pages": (
        lambda: tiff_of_pages(100)[:-604] + struct.pack("<I", 8) + bytes(600),
        ServiceError,
        "TIFF",
    ),
}


@pytest.mark.parametrize("kind", WITHOUT_END)
def test_a_file_of_too_many_parts_is_refused_before_it_is_decoded(kind: str) -> None:
    write, error, says = WITHOUT_END[kind]
    body = write()
    with pytest.raises(error, match=says):
        read(body)


def test_the_end_of_a_jpeg_is_not_looked_for_inside_its_segments() -> None:
    assert scans(with_metadata_between_scans(3), 2) == scans(jpeg_of_scans(5), 2) > 5


def test_what_encoders_write_has_fewer_parts() -> None:
    for options in ({}, {"subsampling": 0}, {"optimize": True}):
        assert read(encode(street(64, 64), "JPEG", progressive=True, **options)).shape[2] == 3
    assert read(jpeg_of_scans(MAX_SCANS - 10)).shape == (64, 64, 3)
    assert read(png_of_chunks(*[(b"abCd", b"")] * 9000)).shape == (64, 64, 3)


def test_a_size_of_which_the_decoder_knows_another_is_refused() -> None:
    webp = bytearray(encode(street(64, 64), "WEBP", exif=TURNED))
    assert webp[12:16] == b"VP8X"
    webp[24] = 31  # of the canvas
    with pytest.raises(InvalidImage):
        read(bytes(webp))


def test_text_of_a_png_is_not_unpacked_without_end() -> None:
    bomb = b"key\0\0" + zlib.compress(bytes(50 << 20), 9)
    body = png_of_chunks(*[(b"zTXt", bomb)] * 5, (b"iCCP", bomb))
    assert (read(body) == read(png_of_chunks())).all()


def test_a_big_tiff_has_its_size() -> None:
    made = io.BytesIO()
    image("RGB").save(made, "TIFF", big_tiff=True)
    assert read_header(made.getvalue(), max_bytes=1 << 26).pixels == SIDE * SIDE
