"""The orientation of an EXIF block: Pillow's answer, or none."""

from __future__ import annotations

import random
import struct
import warnings
from collections.abc import Iterable

import pytest
from PIL import Image

from service.core.images.header import exif_orientation

ORIENTATION, X_RESOLUTION, UNIT = 0x0112, 0x011A, 0x0128
SHORT, LONG, RATIONAL, UNDEFINED = 3, 4, 5, 7
Entry = tuple[int, int, int, int]
"""Tag, type, count and the field of the value or its place."""


def block(entries: Iterable[Entry], order: str = "<", tail: bytes = bytes(20)) -> bytes:
    """One directory right after the head."""
    listed = list(entries)
    made = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    made += struct.pack(order + "H", len(listed))
    for tag, kind, count, field in listed:
        made += struct.pack(order + "HHII", tag, kind, count, field)
    return made + bytes(4) + tail


def short(tag: int, value: int, order: str = "<") -> Entry:
    return tag, SHORT, 1, value if order == "<" else value << 16


def pillows(data: bytes) -> int | None:
    """None where Pillow warns or fails."""
    read = Image.Exif()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            read.load(b"Exif\0\0" + data)
            found = read.get(ORIENTATION, 0)
        except Exception:
            return None
    return int(found) if isinstance(found, int) else None


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("value", [1, 2, 6, 8, 9, 65535])
def test_an_orientation_is_read_in_both_byte_orders(order: str, value: int) -> None:
    data = block([(0x010F, 2, 9, 40), short(ORIENTATION, value, order)], order)
    assert exif_orientation(data) == value == pillows(data)


def test_a_block_without_an_orientation_has_none() -> None:
    data = block([short(UNIT, 2), (X_RESOLUTION, RATIONAL, 1, 30)])
    assert exif_orientation(data) == 0 == pillows(data)
    assert exif_orientation(block([])) == 0 == pillows(block([]))


UPRIGHT = short(ORIENTATION, 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"II*\0",
        b"II+\0\x08\0\0\0" + bytes(30),
        b"XX*\0" + block([UPRIGHT])[4:],
        b"II*\0" + struct.pack("<I", 2**32 - 1) + bytes(30),
        block([UPRIGHT])[:20],
        block([UPRIGHT], tail=b"")[:-1],
        block([short(ORIENTATION, 0)]),
        block([(ORIENTATION, LONG, 1, 1)]),
        block([(ORIENTATION, SHORT, 2, 1)]),
        block([UPRIGHT, UPRIGHT]),
        block([UPRIGHT, (0x010F, 2, 0, 0)]),
        block([UPRIGHT, (0x010F, 0, 1, 0)]),
        block([UPRIGHT, (0x010F, 14, 1, 0)]),
        block([UPRIGHT, (0x010F, 2, 2**32 - 1, 8)]),
        block([UPRIGHT, (0x010F, 2, 9, 50)]),
        block([UPRIGHT, (0x010F, 2, 40, 0), (0x0110, 2, 40, 0)]),
        block([UPRIGHT, (X_RESOLUTION, UNDEFINED, 1, 0)]),
        block([UPRIGHT, (UNIT, UNDEFINED, 1, 0)]),
        block([UPRIGHT] + [(0x9000 + n, SHORT, 1, 0) for n in range(256)]),
    ],
)
def test_of_unusual_blocks_nothing_is_said(data: bytes) -> None:
    assert exif_orientation(data) is None


def test_it_says_what_pillow_says_of_any_bytes() -> None:
    rng = random.Random(0)
    known = 0
    for _ in range(3000):
        order = rng.choice("<>")
        tags = rng.sample([ORIENTATION, X_RESOLUTION, UNIT, 0x010F, 0x8769, 0xC4A5], 3)
        entries = [
            (tag, rng.choice([SHORT, SHORT, RATIONAL, 2]), 1, rng.choice([1, 6, 1 << 16]))
            for tag in tags
        ]
        data = bytearray(block(entries, order))
        for _ in range(rng.choice([0, 0, 1, 2])):
            data[rng.randrange(len(data))] = rng.choice([0, 1, 3, rng.randrange(256)])
        found = exif_orientation(bytes(data))
        if found is not None:
            known += 1
            assert found == pillows(bytes(data)), data.hex()
    assert 300 < known < 2900
