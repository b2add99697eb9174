"""Describes what is fuzzed, and changes bytes."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MAX_BYTES = 1 << 16
"""No file is mutated to be longer: what is large is tried elsewhere."""
_INTERESTING = (0, 1, 2, 127, 128, 254, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**32 - 1)
_NUMBERS = (b"0", b"-1", b"-0", b"1e400", b"NaN", b"9" * 400, b"1" * 5000, b"0.5", b"true")
_PIECES = (b"\r\n", b"\n", b"\0", b'"', b"[", b"{", b",", b":", b"\\ud800", b"null", b"[" * 2000)
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Target:
    """Holds one reader of other people's bytes.

    seeds: makes whole files, drawn by the project. check: reads one, and says in a word what came
    out; raises one of `errors` when it is refused, whose text must help, and AssertionError when
    two readers differ. least: which words must come out of a run of some hundred mutations.
    may_crash: whether a library of others ends the process on some, so that no test may run it.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    check: Callable[[bytes], str]
    errors: tuple[type[Exception], ...]
    least: frozenset[str] = frozenset({"read"})
    may_crash: bool = False

    def run(self, data: bytes) -> str:
        """Returns what came out. Raises what is no error of ours."""
        try:
            return self.check(data)
        except self.errors as error:
            assert len(str(error)) > 10
            return type(error).__name__


def mutated(random: random.Random, seeds: Sequence[bytes], longest: int = MAX_BYTES) -> bytes:
    """Changes one of the seeds in one to four places."""
    data = bytearray(random.choice(seeds))
    for _ in range(random.randint(1, 4)):
        random.choice(_CHANGES)(random, data, seeds)
    return bytes(data[:longest])


def with_checksums(data: bytes) -> bytes:
    """Makes the checksums of a PNG's chunks right, so that what is in them is read."""
    if not data.startswith(_PNG):
        return data
    made, at = bytearray(data), len(_PNG)
    while at + 12 <= len(made):
        (length,) = struct.unpack_from(">I", made, at)
        end = at + 8 + length
        if end + 4 > len(made):
            break
        struct.pack_into(">I", made, end, zlib.crc32(made[at + 4 : end]))
        at = end + 4
    return bytes(made)


def _place(random: random.Random, data: bytearray) -> int:
    """Chooses a place, more often near the front, where headers are."""
    return min(random.randrange(len(data) + 1), random.randrange(len(data) + 1))


def _flip(random: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    if data:
        data[_place(random, data) - 1] ^= 1 << random.randrange(8)


def _set(random: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    if data:
        data[_place(random, data) - 1] = random.randrange(256)


def _integer(random: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    """Writes a number at the edge of something, of one, two or four bytes in either order."""
    size = random.choice((1, 2, 4))
    value = random.choice(_INTERESTING) & ((1 << 8 * size) - 1)
    at = _place(random, data)
    data[at : at + size] = value.to_bytes(size, random.choice(("little", "big")))


def _number(random: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    """Puts another number in place of one that is written out."""
    at = _place(random, data)
    while at < len(data) and not 48 <= data[at] <= 57:
        at += 1
    end = at
    while end < len(data) and 48 <= data[end] <= 57:
        end += 1
    data[at:end] = random.choice(_NUMBERS)


def _insert(random: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    at = _place(random, data)
    data[at:at] = random.choice(_PIECES) if random.random() < 0.7 else random.randbytes(4)


def _delete(random: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    at = _place(random, data)
    del data[at : at + random.choice((1, 2, 4, 16, 64))]


def _repeat(random: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    at = _place(random, data)
    data[at:at] = data[at : at + random.choice((1, 8, 64))] * random.choice((1, 2, 30))


def _cut(random: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    if random.random() < 0.4:
        del data[random.randrange(len(data) + 1) :]


def _splice(random: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    """Goes on with the end of another seed."""
    other = random.choice(seeds)
    data[_place(random, data) :] = other[random.randrange(len(other) + 1) :]


_CHANGES = (_flip, _set, _integer, _number, _insert, _delete, _repeat, _cut, _splice)
