"""Finds the one image of a TIFF and how its samples are stored; Pillow then reads the pixels.

Pillow is handed a directory with nothing but the tags the pixels depend on. So neither metadata nor
further pages can decide what becomes of the image, and what is not known here to come out right is
refused: docs/images.md has the table, tests/unit/core/test_tiff_grid.py the proof.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from service.core.images.tiff_words import NAMES, listed
from service.core.images.tiff_words import summary as describe
from service.errors import InvalidImage, UnsupportedImageFormat

CONVERT: Final = "save it as 8-bit RGB, interleaved, with LZW, Deflate or no compression, or as PNG"

# Source: TIFF 6.0, sections 8 to 23, and libtiff's tiff.h for the private ones.
_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _SUB_IFDS = 254, 255, 330
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 256, 257, 258, 259, 262, 277
_FILL_ORDER, _ORIENTATION, _PLANAR, _PREDICTOR, _COLOR_MAP = 266, 274, 284, 317, 320
_EXTRA_SAMPLES, _SAMPLE_FORMAT, _SUBSAMPLING = 338, 339, 530
_PIXEL_TAGS: Final = frozenset(
    {
        _WIDTH,
        _HEIGHT,
        _BITS,
        _COMPRESSION,
        _PHOTOMETRIC,
        _FILL_ORDER,
        273,
        _SAMPLES,
        278,
        279,
        _PLANAR,
    }
    | {292, 293, _PREDICTOR, _COLOR_MAP, 322, 323, 324, 325, _EXTRA_SAMPLES, _SAMPLE_FORMAT}
    | {347, 529, _SUBSAMPLING, 531, 532}
)
# Other values give these samples a meaning that Pillow does not know: inks, the range of a dot, an
# index into a colour space, a volume.
_ONLY: Final = {332: (1,), 336: (0, 255), 346: (0,), 32997: (1,)}
# The values of YCbCrCoefficients and ReferenceBlackWhite that JPEG has, times 1000.
_ONLY_OF_YCBCR: Final = {529: (299, 587, 114), 532: (0, 255000, 128000, 255000, 128000, 255000)}

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _MASK, _CMYK, _YCBCR = range(7)
_BITS_OF: Final = {
    _WHITE_IS_ZERO: (1, 2, 4, 8, 12, 16),
    _BLACK_IS_ZERO: (1, 2, 4, 8, 12, 16),
    _RGB: (8, 16),
    _PALETTE: (1, 2, 4, 8),
    _CMYK: (8, 16),
    _YCBCR: (8,),
}
_COLORS_OF: Final = {_RGB: 3, _CMYK: 4, _YCBCR: 3}
_JPEG: Final = 7
_FAX: Final = frozenset({2, 3, 4})
_PREDICTED: Final = frozenset({5, 8, 32946, 34925, 50000})
_COMPRESSIONS: Final = frozenset({1, _JPEG, 32773}) | _FAX | _PREDICTED
_ASSOCIATED: Final = 1

# The types of whole numbers, and RATIONAL, a pair.
_CODES: Final = {1: "B", 3: "H", 4: "I", 5: "II", 13: "I", 16: "Q", 18: "Q"}
_PLACES: Final = {3: "u2", 4: "u4", 16: "u8"}
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
MAX_SCANS: Final = 40
"""Scans of a JPEG. Each of them goes over the whole image, however few bytes it has; encoders write
10 for colour, and up to 20 where they search for the smallest file."""
_NOT_THE_IMAGE: Final = 0b1101  # NewSubfileType: a reduced copy, a mask, a depth map
_MAX_DIRECTORIES, _MAX_ENTRIES, _MAX_VALUES, _MAX_PARTS = 128, 2048, 1 << 12, 1 << 18
_MAX_TILE_SIDE: Final = 1024  # or twice the image's


@dataclass(frozen=True, slots=True)
class Tiff:
    """Holds what is left to do once Pillow has read the pixels.

    body: a file for Pillow, of the one image. orientation: as in EXIF, 1..8. inverted: whether the
    pixels are grey and their zero is white. bits: of a sample.
    """

    body: bytes
    orientation: int
    inverted: bool
    bits: int
    summary: str


def read_tiff(body: bytes) -> Tiff:
    """Chooses the image among the pages and judges how it is stored.

    Raises: InvalidImage, UnsupportedImageFormat.
    """
    with _understood():
        return _Directory.chosen(body).judged()


@contextmanager
def _understood() -> Iterator[None]:
    """Raises: InvalidImage, where the parser met what it does not understand."""
    try:
        yield
    except (struct.error, IndexError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise InvalidImage(
            "the TIFF file is truncated or damaged: check that it opens in a viewer and send it "
            "whole"
        ) from error


def stored_in(body: bytes) -> tuple[int, int, int, float]:
    """Returns the image's height and width, and the bytes that Pillow takes for each pixel and
    libtiff, which unpacks whole tiles and strips.

    Raises: InvalidImage, UnsupportedImageFormat.
    """
    with _understood():
        return _Directory.chosen(body).stored()


class _Directory:
    """Is one page: its tags, and where their values lie in the file."""

    def __init__(self, body: bytes, at: int) -> None:
        self._body = body
        self._order = "<" if body[:1] == b"I" else ">"
        self._big = _is_big(body)
        count_code, entry_code = ("Q", "HHQ8s") if self._big else ("H", "HHI4s")
        (count,) = struct.unpack_from(self._order + count_code, body, at)
        at += struct.calcsize(self._order + count_code)
        size = struct.calcsize(self._order + entry_code)
        if count > _MAX_ENTRIES or at + count * size > len(body):
            raise struct.error
        self.entries = count
        self._of: dict[int, tuple[int, int, bytes]] = {}
        for tag, kind, length, value in struct.iter_unpack(
            self._order + entry_code, body[at : at + count * size]
        ):
            self._of.setdefault(tag, (kind, length, value))
        tail = body[at + count * size :][: 8 if self._big else 4]
        # Some writers leave out the place of the next one after the last.
        self.next_at = int.from_bytes(tail, "little" if self._order == "<" else "big")

    @classmethod
    def chosen(cls, body: bytes) -> _Directory:
        """Returns the only page that is an image of its own."""
        pages = list(_pages(body))
        images = [page for page in pages if page.is_image()]
        if len(images) > 1:
            raise UnsupportedImageFormat(
                f"the TIFF file holds {len(images)} images: send each in a request of its own"
            )
        if images:
            return images[0]
        if len(pages) == 1 and _SUB_IFDS not in pages[0]._of:
            return pages[0]  # a copy or a mask by itself: there is no other to prefer
        raise UnsupportedImageFormat(
            "the TIFF file holds no full image among its pages, only reduced copies and masks, as "
            f"camera raw and .ovr files do: {CONVERT}"
        )

    def is_image(self) -> bool:
        """Tells it from an overview, a thumbnail and a mask."""
        if _NEW_SUBFILE_TYPE in self._of:
            other = bool(self._number(_NEW_SUBFILE_TYPE, 0) & _NOT_THE_IMAGE)
        else:
            other = self._number(_SUBFILE_TYPE, 1) == 2
        return not other and self._number(_PHOTOMETRIC, -1) != _MASK

    def stored(self) -> tuple[int, int, int, float]:
        """Returns what `stored_in` does."""
        height, width = self._number(_HEIGHT, 0), self._number(_WIDTH, 0)
        bits, samples = self._numbers(_BITS, (1,))[0], self._number(_SAMPLES, 1)
        photometric = self._number(_PHOTOMETRIC, -1)
        single = samples == 1 and photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE)
        in_pillow = (1 if bits <= 8 else 2) if single else 4
        if 324 in self._of:
            rows, columns = tile = self._number(323, 0), self._number(322, 0)
            if any(
                side > max(_MAX_TILE_SIDE, 2 * of)
                for side, of in zip(tile, (height, width), strict=True)
            ):
                raise UnsupportedImageFormat(
                    f"the TIFF file has tiles of {rows}x{columns} (height x width) for an image of "
                    f"{height}x{width}: {CONVERT}"
                )
        else:
            rows, columns = min(self._number(278, height), height), width
        # A JPEG's coefficients may be there besides; YCbCr becomes RGB with four bytes.
        jpeg = self._number(_COMPRESSION, 1) == _JPEG
        part_bytes = 4 + 6 if jpeg else 4 if photometric == _YCBCR else bits * samples / 8
        return height, width, in_pillow, rows * columns * part_bytes / max(1, height * width)

    def judged(self) -> Tiff:
        """Refuses what Pillow reads wrongly, or not at all."""
        photometric = self._number(_PHOTOMETRIC, -1)
        samples = self._number(_SAMPLES, 1)
        depths = self._numbers(_BITS, (1,))
        bits = depths[0]
        formats = self._numbers(_SAMPLE_FORMAT, (1,))
        compression = self._number(_COMPRESSION, 1)
        planar = self._number(_PLANAR, 1)
        predictor = self._number(_PREDICTOR, 1)
        extra = samples - _COLORS_OF.get(photometric, 1)
        summary = describe(photometric, depths, formats, samples, compression, planar)

        def must(good: bool, why: str) -> None:
            if not good:
                raise UnsupportedImageFormat(f"the TIFF file is {summary}: {why}; {CONVERT}")

        must(photometric in _BITS_OF, "this kind of colour is not read")
        must(set(formats) == {1}, "signed, floating-point and complex samples have no known white")
        must(
            len(set(depths)) == 1 and bits in _BITS_OF[photometric],
            f"{NAMES[photometric]} is read with {listed(_BITS_OF[photometric])} bits a sample",
        )
        must(0 <= extra <= 3 and planar in (1, 2), "samples are missing or too many")
        must(not self._big or self._order == "<", "big-endian BigTIFF is not read")
        must(compression in _COMPRESSIONS, "this compression is not read")
        must(compression not in _FAX or bits == samples == 1, "fax compression has 1 bit")
        must(
            predictor == 1 or (predictor == 2 and bits in (8, 16) and compression in _PREDICTED),
            f"predictor {predictor} is not read here",
        )
        must(
            self._number(_FILL_ORDER, 1) == 1
            or (bits <= 8 and extra == 0 and photometric <= _PALETTE),
            "fill order 2 is read with up to 8 bits of grey, RGB or a palette",
        )
        for tag, good in _ONLY.items():
            must(self._numbers(tag, good) == good, f"tag {tag} gives its samples another meaning")
        if _ASSOCIATED in self._numbers(_EXTRA_SAMPLES, (0,)):
            whole = planar == 1 and photometric in (_BLACK_IS_ZERO, _RGB)
            must(
                whole, "colour times alpha is read interleaved, as RGB or grey whose zero is black"
            )
        if photometric == _YCBCR:
            must(extra == 0 and planar == 1, "YCbCr is read with three interleaved samples")
            for tag, good in _ONLY_OF_YCBCR.items():
                must(self._thousandths(tag, good) == good, f"tag {tag} is not as in JPEG")
        if photometric == _PALETTE:
            colors = self._numbers(_COLOR_MAP, ())
            must(len(colors) == 3 << bits, f"its colour map has not {3 << bits} numbers")
            must(not 0 < max(colors) <= 255, "its colour map has 8 bits instead of 16")
        self._check_places(photometric, bits, samples, compression, planar)
        kind, length, _ = self._of.get(_ORIENTATION, (0, 0, b""))
        orientation = self._number(_ORIENTATION, 1) if (kind, length) == (3, 1) else 1
        return Tiff(
            body=self._alone(extra),
            orientation=orientation if 1 <= orientation <= 8 else 1,
            inverted=photometric == _WHITE_IS_ZERO,
            bits=bits,
            summary=summary,
        )

    def _check_places(
        self, photometric: int, bits: int, samples: int, compression: int, planar: int
    ) -> None:
        """Refuses a file that is cut off, where libtiff reads on or fills up and says nothing."""
        tiled = 324 in self._of
        offsets, lengths = (self._array(tag) for tag in ((324, 325) if tiled else (273, 279)))
        size = len(self._body)
        # One by one, as their sum may overflow.
        good = len(offsets) == len(lengths) and bool((offsets <= size).all())
        good = good and bool((lengths <= size).all())
        good = good and int((offsets + lengths).max()) <= size
        if good and compression == _JPEG:
            ends = zip(offsets.tolist(), (offsets + lengths).tolist(), strict=True)
            # A writer may have padded the end.
            good = all(self._body.find(_JPEG_END, max(at, end - 16), end) >= 0 for at, end in ends)
            if self._body.count(_JPEG_SCAN) > MAX_SCANS * len(offsets):
                raise UnsupportedImageFormat(
                    f"the TIFF file has JPEGs of more than {MAX_SCANS} scans: {CONVERT}"
                )
        if compression == 1 and not tiled:
            height, width = self._number(_HEIGHT, 0), self._number(_WIDTH, 0)
            if photometric == _YCBCR:
                across, down = (*self._numbers(_SUBSAMPLING, (2, 2)), 0)[:2]
                least = -(-height // down) * -(-width // across) * (across * down + 2)
            else:
                planes = samples if planar == 2 else 1
                least = height * planes * -(-width * bits * (samples // planes) // 8)
            good = good and int(lengths.sum()) >= least
        if not good:
            raise struct.error

    def _array(self, tag: int) -> npt.NDArray[np.uint64]:
        """Returns the whole numbers of a tag that may have many: places of strips and tiles."""
        kind, length, value = self._of.get(tag, (0, 0, b""))
        if kind not in _PLACES or not 1 <= length <= _MAX_PARTS:
            raise struct.error
        dtype = np.dtype(self._order + _PLACES[kind])
        if length * dtype.itemsize <= len(value):
            found = np.frombuffer(value, dtype, length)
        else:
            (at,) = struct.unpack(self._order + ("Q" if self._big else "I"), value)
            if at + length * dtype.itemsize > len(self._body):
                raise struct.error
            found = np.frombuffer(self._body, dtype, length, at)
        return found.astype(np.uint64)

    def _numbers(self, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
        """Returns a tag's whole numbers; of a rational both parts."""
        if tag not in self._of:
            return default
        kind, length, value = self._of[tag]
        if kind not in _CODES or not 1 <= length <= _MAX_VALUES:
            raise struct.error
        code = f"{self._order}{length * len(_CODES[kind])}{_CODES[kind][0]}"
        if struct.calcsize(code) <= len(value):
            return struct.unpack_from(code, value)
        (at,) = struct.unpack(self._order + ("Q" if self._big else "I"), value)
        return struct.unpack_from(code, self._body, at)

    def _number(self, tag: int, default: int) -> int:
        return self._numbers(tag, (default,))[0]

    def _thousandths(self, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
        if tag not in self._of:
            return default
        parts = self._numbers(tag, ())
        if self._of[tag][0] != 5:
            return tuple(1000 * part for part in parts)
        return tuple(
            round(1000 * top / bottom) for top, bottom in zip(parts[::2], parts[1::2], strict=True)
        )

    def _alone(self, extra: int) -> bytes:
        """Writes a directory of the tags that matter behind the file, and makes it the only one.

        Offsets are from the file's start, so that what the tags point to stays where it is. Two
        tags are put otherwise: of grey, zero is black, as Pillow inverts some depths and not
        others; and as alpha is dropped, samples that the colours were not multiplied by have no
        meaning.
        """
        place, room = ("Q", 8) if self._big else ("I", 4)
        count, entry = ("Q", "HHQ8s") if self._big else ("H", "HHI4s")
        zeros_at = len(self._body)
        start = zeros_at + 8 + -zeros_at % 8
        of = {tag: value for tag, value in self._of.items() if tag in _PIXEL_TAGS}
        if self._number(_PHOTOMETRIC, -1) == _WHITE_IS_ZERO:
            value = struct.pack(self._order + "H", _BLACK_IS_ZERO)
            of[_PHOTOMETRIC] = (3, 1, value.ljust(room, b"\0"))
        of.pop(_EXTRA_SAMPLES, None)
        if _ASSOCIATED in self._numbers(_EXTRA_SAMPLES, (0,)):
            of[_EXTRA_SAMPLES] = self._of[_EXTRA_SAMPLES]
        elif extra:
            inline = 2 * extra <= room
            value = bytes(room) if inline else struct.pack(self._order + place, zeros_at)
            of[_EXTRA_SAMPLES] = (3, extra, value)
        head = self._body[:room] + struct.pack(self._order + place, start)
        directory = [struct.pack(self._order + count, len(of))]
        directory += [struct.pack(self._order + entry, tag, *of[tag]) for tag in sorted(of)]
        body = memoryview(self._body)[len(head) :]
        return b"".join([head, body, bytes(start - zeros_at), *directory, bytes(room)])


def _is_big(body: bytes) -> bool:
    return 43 in body[2:4]


def _pages(body: bytes) -> Iterator[_Directory]:
    """Follows the chain of directories; it ends where one was before or lies outside the file."""
    order = "<" if body[:1] == b"I" else ">"
    code, start = ("Q", 8) if _is_big(body) else ("I", 4)
    (at,) = struct.unpack_from(order + code, body, start)
    seen: set[int] = set()
    entries = 0
    while at and at not in seen and len(seen) < _MAX_DIRECTORIES and entries < _MAX_ENTRIES:
        try:
            page = _Directory(body, at)
        except struct.error:
            if seen:
                return
            raise
        seen.add(at)
        yield page
        at, entries = page.next_at, entries + page.entries
    if not seen:
        raise struct.error
    if at and at not in seen:
        raise UnsupportedImageFormat(
            f"the TIFF file has more than {len(seen)} pages: save the one that is meant alone"
        )
