"""Every kind of PNG, BMP and JPEG comes out right or is refused, whatever metadata it has."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from service.errors import InvalidImage, UnsupportedImageFormat
from tests.drawing import Chunk, UInt8Array, encode, png_chunk, png_of, street
from tests.unit.core.decoding import grey_rgb, outcomes, read

RGB = street(24, 32)
GREY = np.ascontiguousarray(RGB[:, :, 1])
TURNED = np.ascontiguousarray(np.rot90(RGB, 1))
EXIF_6 = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x112, 3, 1, 6, 0, 0)  # turn it clockwise
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


@pytest.mark.parametrize("transparency", [False, True])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("color", "bits"), [(color, bits) for color in DEPTHS for bits in DEPTHS[color]]
)
def test_png(color: int, bits: int, interlaced: bool, transparency: bool) -> None:
    rng = np.random.default_rng(bits)
    samples = rng.integers(0, 1 << bits, (21, 37, CHANNELS[color]))
    palette = rng.integers(0, 256, (1 << bits, 3), np.uint8) if color == 3 else None
    before = [] if palette is None else [(b"PLTE", palette.tobytes())]
    if transparency and color == 3:
        before.append((b"tRNS", bytes(range(1 << bits))))
    elif transparency and color in (0, 2):
        before.append((b"tRNS", samples[3, 3].astype(">u2").tobytes()))
    body = png_of(samples, bits, color, before, interlaced=interlaced)
    colors = samples[:, :, : 1 if color in (0, 4) else 3] / ((1 << bits) - 1) * 255
    want = palette[samples[:, :, 0]] if palette is not None else colors
    assert np.abs(read(body) - want).max() <= (1 if bits == 16 else 0.01)
    if not interlaced and not transparency and bits in (8, 16) and palette is None:
        assert (imagecodecs.png_decode(body).reshape(samples.shape) == samples).all()


@pytest.mark.parametrize("kind", [b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"sBIT", b"bKGD", b"eXIf"])
def test_pngs_of_16_bits_turn_and_ignore_colour_spaces(kind: bytes) -> None:
    samples = TURNED[:, :, 1, None].astype(np.uint16) * 257
    body = png_of(samples, 16, 0, [(b"eXIf", EXIF_6), (kind, b"\0\0\x10\0")])
    if kind == b"eXIf":
        body = png_of(samples, 16, 0, [(b"eXIf", EXIF_6)])
    assert (read(body) == grey_rgb(GREY)).all()


LONG = zlib.compress(b"a" * 2_000_000)  # Pillow takes 1 MiB
TEXTS: dict[str, list[Chunk]] = {
    "zTXt": [(b"zTXt", b"comment\0\0" + LONG)],
    "iTXt": [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG)],
    "iCCP": [(b"iCCP", b"name\0\0" + LONG)],
    "all too long together": [(b"zTXt", b"comment\0\0" + zlib.compress(b"a" * 1_000_000))] * 70,
}


@pytest.mark.parametrize("name", TEXTS)
def test_long_text_in_a_png(name: str) -> None:
    assert (read(png_of(RGB, before=TEXTS[name])) == RGB).all()
    assert (read(png_of(RGB, after=TEXTS[name])) == RGB).all()
    turned = png_of(TURNED, before=[(b"eXIf", EXIF_6), *TEXTS[name]])
    assert (read(turned) == RGB).all()


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 7, bytes(40), b"key\0\0junks", b"k\0\1"])
def test_damaged_metadata_in_a_png(data: bytes) -> None:
    for kind in b"gAMA cHRM sRGB pHYs tIME sBIT bKGD eXIf iTXt zTXt tEXt iCCP acTL zzZz".split():
        if kind != b"acTL" or len(data) < 8:  # which says how many images there are
            assert (read(png_of(RGB, before=[(kind, data)])) == RGB).all(), kind
        if kind != b"acTL":
            assert (read(png_of(RGB, after=[(kind, data)])) == RGB).all(), kind


def test_a_wrong_checksum_counts_for_pixels_only() -> None:
    body = png_of(RGB, before=[(b"tEXt", b"comment\0hello")])
    at = body.index(b"hello")
    assert (read(body[:at] + b"j" + body[at + 1 :]) == RGB).all()
    at = body.index(b"IDAT") + 20
    with pytest.raises(InvalidImage):
        read(body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])


def test_long_text_does_not_make_an_animation_an_image() -> None:
    frames = [Image.fromarray(street(seed=n)) for n in range(2)]
    body = encode(frames[0], "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(UnsupportedImageFormat, match="holds 2 images"):
        read(body[:33] + png_chunk(*TEXTS["zTXt"][0]) + body[33:])


JPEG = encode(RGB, "JPEG", quality=95)
SEGMENTS = [
    b"",
    b"\0",
    b"Exif\0\0junk",
    b"Exif\0\0MM\0*\xff\xff\xff\xff",
    b"Exif\0\0" + EXIF_6[:12] + b"\xff" * 8,
    b"ICC_PROFILE\0",
    b"ICC_PROFILE\0\1\2junk",
    b"MPF\0junk",
    b"MPF\0II*\0" + bytes(30),
    b"Photoshop 3.0\x008BIM\x04\x04\0\0",
    b"Photoshop 3.0\x008BIM\x03\xed\xff\xff",
    b"http://ns.adobe.com/xap/1.0/\0<x",
    b"JFIF\0",
    b"\xff" * 65_000,
]


@pytest.mark.parametrize("marker", [*range(0xE0, 0xF0), 0xFE])
def test_damaged_metadata_in_a_jpeg(marker: int) -> None:
    want = read(JPEG)
    for data in SEGMENTS:
        segment = bytes([0xFF, marker]) + struct.pack(">H", 2 + len(data)) + data
        assert (read(JPEG[:2] + segment + JPEG[2:]) == want).all(), data[:20]


def test_a_jpeg_keeps_its_orientation_beside_damaged_metadata() -> None:
    turned = encode(TURNED, "JPEG", quality=95, subsampling=0, exif=b"Exif\0\0" + EXIF_6)
    want = read(turned)
    assert want.shape == RGB.shape
    profile = b"\xff\xe2" + struct.pack(">H", 14) + b"ICC_PROFILE\0"
    assert (read(turned[:2] + profile + turned[2:]) == want).all()


def riff(*chunks: Chunk) -> bytes:
    data = b"".join(k + struct.pack("<I", len(d)) + d + bytes(len(d) % 2) for k, d in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(data)) + b"WEBP" + data


@pytest.mark.parametrize("data", [b"", b"junk", b"II*\0\xff\xff\xff\xff", b"a" * 3_000_000])
def test_damaged_metadata_in_a_webp(data: bytes) -> None:
    body = encode(RGB, "WEBP", lossless=True)
    pixels = (b"VP8L", body[20 : 20 + struct.unpack_from("<I", body, 16)[0]])
    size = struct.pack("<I", 31)[:3] + struct.pack("<I", 23)[:3]
    for flags, kind in ((8, b"EXIF"), (4, b"XMP "), (32, b"ICCP"), (44, b"JUNK")):
        head = (b"VP8X", bytes([flags, 0, 0, 0]) + size)
        first = [head, (kind, data), pixels] if kind == b"ICCP" else [head, pixels, (kind, data)]
        assert (read(riff(*first)) == RGB).all(), kind
    cut = riff((b"VP8X", bytes([8, 0, 0, 0]) + size), pixels) + b"EXIF\xff\xff\xff\0abc"
    assert (read(cut) == RGB).all()


@pytest.mark.parametrize("start", [b"", b"Exif\0\0"])
def test_a_webp_turns(start: bytes) -> None:
    body = encode(TURNED, "WEBP", lossless=True)
    pixels = (b"VP8L", body[20 : 20 + struct.unpack_from("<I", body, 16)[0]])
    size = struct.pack("<I", 23)[:3] + struct.pack("<I", 31)[:3]
    head = (b"VP8X", bytes([8, 0, 0, 0]) + size)
    assert (read(riff(head, pixels, (b"EXIF", start + EXIF_6))) == RGB).all()
    assert (read(riff(head, pixels, (b"EXIF", start + EXIF_6)) + b"JUNK\xff\xff") == RGB).all()


def bmp(bits: int, rows: Any, palette: Any = b"", masks: Sequence[int] = (), **more: Any) -> bytes:
    """rows [H,...] of bytes, top first. more: compression, size of the header, down."""
    data: bytes = rows
    if not isinstance(rows, bytes):
        order = rows if more.get("down") else rows[::-1]
        data = b"".join((row := one.tobytes()) + bytes(-len(row) % 4) for one in order)
    size = more.get("size", 40)
    height = -24 if more.get("down") else 24
    compression = more.get("compression", 3 if masks else 0)
    head = struct.pack(
        "<IiiHHIIiiII", size, more.get("width", 32), height, 1, bits, compression, *[0] * 5
    )
    head += struct.pack(f"<{len(masks)}I", *masks)
    head = head.ljust(size, b"\0")
    start = 14 + len(head) + len(bytes(palette))
    file = b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start)
    return file + head + bytes(palette) + bytes(data)


BGR = np.ascontiguousarray(RGB[:, :, ::-1])


@pytest.mark.parametrize("size", [40, 52, 56, 64, 108, 124])
@pytest.mark.parametrize("down", [False, True])
def test_bmp_of_24_and_32_bits(size: int, down: bool) -> None:
    assert (read(bmp(24, BGR, size=size, down=down)) == RGB).all()
    padded = np.dstack([BGR, GREY])
    assert (read(bmp(32, padded, size=size, down=down)) == RGB).all()


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("grey", ["", "grey", "inverted"])
def test_bmp_with_a_palette(bits: int, down: bool, grey: str) -> None:
    rng = np.random.default_rng(bits)
    index = rng.integers(0, 1 << bits, (24, 29))
    palette = rng.integers(0, 256, (1 << bits, 4), np.uint8)
    if grey:
        ramp = np.linspace(0, 255, 1 << bits).astype(np.uint8)[:, None]
        palette = np.repeat(ramp if grey == "grey" else ramp[::-1], 4, axis=1)
    shifts = np.arange(bits - 1, -1, -1)
    rows = np.packbits((index[..., None] >> shifts & 1).reshape(24, -1).astype(np.uint8), axis=1)
    body = bmp(bits, rows, palette.tobytes(), width=29, down=down)
    assert (read(body) == palette[index][:, :, 2::-1]).all()


def test_bmp_of_16_bits() -> None:
    red, green, blue = (RGB[:, :, n].astype(np.uint16) for n in range(3))
    five = np.round((RGB >> 3) / 31 * 255)
    body = bmp(16, (red >> 3 << 10 | green >> 3 << 5 | blue >> 3).astype("<u2"))
    assert np.abs(read(body) - five).max() <= 1
    six = five.copy()
    six[:, :, 1] = np.round((RGB[:, :, 1] >> 2) / 63 * 255)
    rows = (red >> 3 << 11 | green >> 2 << 5 | blue >> 3).astype("<u2")
    assert np.abs(read(bmp(16, rows, masks=(0xF800, 0x7E0, 0x1F))) - six).max() <= 1


@pytest.mark.parametrize("order", list(itertools.permutations(range(4), 3)), ids=str)
def test_bmp_of_32_bits_with_masks(order: tuple[int, ...]) -> None:
    rows = np.zeros((24, 32, 4), np.uint8)
    rows[:, :, order] = RGB
    masks = [0xFF << 8 * place for place in order]
    masks.append(0xFFFFFFFF ^ sum(masks))
    try:
        assert (read(bmp(32, rows, masks=masks, size=108)) == RGB).all()
    except InvalidImage as error:
        assert "8-bit RGB PNG" in str(error)
        assert order not in ((2, 1, 0), (3, 2, 1), (0, 1, 2))


def runs(index: UInt8Array, literal: bool) -> bytes:
    """BI_RLE8, bottom row first."""
    out = b""
    for row in index[::-1]:
        if literal:
            out += bytes([0, len(row)]) + row.tobytes() + bytes(len(row) % 2)
        else:
            for value, same in itertools.groupby(row.tolist()):
                out += bytes([len(list(same)), value])
        out += b"\0\0"
    return out + b"\0\1"


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("width", [31, 32])
def test_bmp_with_runs(width: int, literal: bool) -> None:
    palette = np.random.default_rng(3).integers(0, 256, (256, 4), np.uint8)
    index = np.ascontiguousarray(GREY[:, :width])
    body = bmp(8, runs(index, literal), palette.tobytes(), compression=1, width=width)
    assert (read(body) == palette[index][:, :, 2::-1]).all()
    fours = b"".join(bytes([width, 0x25]) + b"\0\0" for _ in range(24)) + b"\0\1"
    body = bmp(4, fours, palette[:16].tobytes(), compression=2, width=width)
    pairs = np.tile([2, 5], (24, 16))[:, :width]
    assert (read(body) == palette[pairs][:, :, 2::-1]).all()


@pytest.mark.parametrize(
    "body",
    [
        bmp(2, bytes(24 * 8), bytes(16)),
        bmp(64, bytes(24 * 32 * 8)),
        bmp(16, bytes(24 * 64), masks=(0xF00, 0xF0, 0xF)),
        bmp(32, bytes(24 * 128), masks=(0x3FF00000, 0xFFC00, 0x3FF)),
        bmp(24, JPEG, compression=4),
    ],
    ids=["2 bits", "64 bits", "4 bits a channel", "10 bits a channel", "JPEG inside"],
)
def test_bmps_that_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidImage, match="BMP file is truncated or damaged, or of a rare kind"):
        read(body)


def jpeg(array: Any, **options: Any) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(array, level=98, **options))


def test_colours_of_a_jpeg() -> None:
    smooth = np.zeros((24, 32, 3), np.uint8)
    smooth[:, :, 0] = np.arange(24)[:, None] * 9
    smooth[:, :, 1] = np.arange(32) * 7
    ink = np.dstack([255 - smooth, np.full((24, 32), 40, np.uint8)])
    inverted = 255 - ink  # as Adobe's are
    want = smooth * (215 / 255)
    for body in (
        jpeg(smooth, colorspace="RGB", outcolorspace="RGB"),
        jpeg(smooth, lossless=True),
    ):
        assert np.abs(read(body) - smooth.astype(int)).max() <= 4
    for space in ("CMYK", "YCCK"):
        body = jpeg(inverted, colorspace="CMYK", outcolorspace=space)
        assert b"Adobe" in body
        assert np.abs(read(body) - want).mean() <= 4
    at = body.index(b"\xff\xee")
    with pytest.raises(UnsupportedImageFormat, match="CMYK without Adobe's marker.*save it as RGB"):
        read(body[:at] + body[at + 16 :])


def test_jpegs_that_are_refused_by_name() -> None:
    deep = GREY.astype(np.uint16) * 16
    for body, says in (
        (jpeg(deep, bitspersample=12), "JPEG file is of 12 bits a channel"),
        (jpeg(deep * 16, bitspersample=16, lossless=True), "of 16 bits a channel"),
        (bytes(imagecodecs.jpegls_encode(GREY)), r"lossless \(JPEG-LS\)"),
    ):
        with pytest.raises(UnsupportedImageFormat, match=f"{says}.*save it as an 8-bit RGB JPEG"):
            read(body)


@pytest.mark.parametrize("tail", [b"", bytes(1000)])
@pytest.mark.parametrize("kept", [0.6, 1.0])
def test_a_jpeg_without_its_end_marker_is_refused(kept: float, tail: bytes) -> None:
    thumbnail = b"\xff\xe1" + struct.pack(">H", 8) + b"Exif\xff\xd9"
    whole = JPEG[:2] + thumbnail + JPEG[2:]
    assert (read(whole) == read(JPEG)).all()
    with pytest.raises(InvalidImage, match="its end marker is missing; send it whole"):
        read(whole[: int((len(whole) - 2) * kept)] + tail)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it then reads or refuses
def test_damaged_files_give_an_image_or_a_domain_error() -> None:
    rng = np.random.default_rng(21)
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "WEBP", exif=EXIF_6, xmp=b"<x/>", icc_profile=bytes(200))
    bodies = [
        png_of(RGB, before=[(b"eXIf", EXIF_6), *TEXTS["iCCP"], *TEXTS["iTXt"]]),
        png_of(GREY[:, :, None].astype(np.uint16), 16, 0),
        encode(RGB, "JPEG", exif=EXIF_6, icc_profile=bytes(300), xmp=b"<x/>"),
        buffer.getvalue(),
        bmp(8, runs(GREY, True), bytes(1024), compression=1),
        bmp(24, BGR, size=124),
    ]
    kinds = outcomes(rng, bodies, lambda body: (0, 300 if rng.random() < 0.6 else len(body)))
    assert {"read", "invalid-image", "unsupported-image-format", "image-too-large"} <= kinds
