"""Reads pixels that are written out as numbers, without an object for each.

A byte of JSON may become an object of a hundred, and a parser holds up every other thread until it
is done. So arrays of numbers are taken out of the text before it is parsed, and read a piece at a
time by numpy, which lets other threads run.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from service.errors import InvalidParameter

UInt8Array = npt.NDArray[np.uint8]

_KEY: Final = b'"data"'
_BEGINS: Final = re.compile(rb'"data"\s{0,64}:\s{0,64}(?=\[)')
_MOST_KEYS: Final = 256
_FIRST: Final = secrets.randbits(62)
"""Stands for the first array that was taken out: nobody can ask for one by its number."""
_DEEPEST: Final = 8
"""Lists within lists whose shape is told to a caller who nested his pixels otherwise."""
_SPACE: Final = b" \t\r\n"
_DIGITS: Final = b"0123456789"
_AT_A_TIME: Final = 1 << 16


def take_out(text: bytes) -> tuple[bytes, dict[int, bytes]]:
    """Splits JSON into what is left without the arrays of numbers that are called "data", and
    these, by the number that is in place of each."""
    kept: list[bytes] = []
    arrays: dict[int, bytes] = {}
    done = at = 0
    for _ in range(_MOST_KEYS):
        if (at := text.find(_KEY, at)) < 0:
            break
        if (key := _BEGINS.match(text, at)) is not None:
            ends = text.find(b'"', key.end())
            ends = len(text) if ends < 0 else ends  # each key looks no further than to the next
            ends = min(
                (n for c in b"{}" if (n := text.find(c, key.end(), ends)) >= 0), default=ends
            )
            array = text[key.end() : ends].rstrip(_SPACE + b",")
            if array.endswith(b"]"):  # otherwise there is more than numbers in it
                number = _FIRST + len(arrays)
                kept += text[done : key.end()], b"%d" % number
                arrays[number] = array
                done = key.end() + len(array)
        at += len(_KEY)
    return b"".join((*kept, text[done:])), arrays


def read_array(array: bytes, shape: tuple[int, ...], name: str) -> UInt8Array:
    """Reads a JSON array of whole numbers from 0 to 255, flat or nested as the shape says.

    name: of the tensor. Returns them flat. Raises: InvalidParameter.
    """
    found, frames = [], []
    for window in _windows(array, name):
        packed = window.translate(None, _SPACE)
        padded = b",%b," % packed
        if len(packed) < len(window) and len(_edges(padded)) != len(_edges(b",%b," % window)):
            raise no_numbers(name)  # there is white space within a number
        found.append(_numbers(padded, name))
        frames.append(packed.translate(None, _DIGITS))
    numbers, frame = np.concatenate(found), b"".join(frames)
    if frame.strip(b"[,]") or not numbers.size:
        raise no_numbers(name)
    if len(numbers) != math.prod(shape) or not (
        _is_frame(frame, (len(numbers),)) or _is_frame(frame, shape)
    ):
        own = _shape_of(frame)
        told = f"has the shape {_printed(own)}" if _is_frame(frame, own) else "is ragged"
        raise InvalidParameter(
            f"the data of input {name!r} {told}, and so is neither flat nor nested as its shape "
            f"{_printed(shape)} says"
        )
    return numbers


def read_numbers(numbers: Sequence[int], name: str) -> bytes:
    """Reads protobuf's repeated field of them. Raises: InvalidParameter."""
    try:
        parts = [bytes(numbers[at : at + _AT_A_TIME]) for at in range(0, len(numbers), _AT_A_TIME)]
    except ValueError:
        raise no_numbers(name) from None
    if not parts:
        raise no_numbers(name)
    return b"".join(parts)


def no_numbers(name: str) -> InvalidParameter:
    """Refuses data that are no pixels."""
    return InvalidParameter(
        f"the data of input {name!r} is not all whole numbers from 0 to 255, as UINT8 is"
    )


def _windows(array: bytes, name: str) -> Iterator[bytes]:
    """Cuts the text behind commas. Raises: InvalidParameter when there is none for long."""
    at = 0
    while at < len(array):
        ends = len(array)
        if at + _AT_A_TIME < ends:
            ends = array.rfind(b",", at, at + _AT_A_TIME) + 1
            if not ends:
                raise no_numbers(name)
        yield array[at:ends]
        at = ends


def _edges(padded: bytes) -> npt.NDArray[np.intp]:
    """Finds where each run of digits begins and ends, in turn. padded: with a comma around."""
    digit = np.frombuffer(padded, np.uint8) - ord("0") < 10
    return np.flatnonzero(digit[1:] != digit[:-1]) + 1


def _numbers(padded: bytes, name: str) -> UInt8Array:
    """Reads what is between commas and brackets, without white space. Raises: InvalidParameter."""
    edges = _edges(padded)
    starts, ends = edges[::2], edges[1::2]
    text = np.frombuffer(padded, np.uint8)
    digits = (text - ord("0")).astype(np.uint16)
    length = ends - starts
    value = digits[ends - 1]
    value += (length > 1) * digits[ends - 2] * np.uint16(10)
    value += (length > 2) * digits[ends - 3] * np.uint16(100)
    before, after = text[starts - 1], text[ends]
    wrong = (length > 3) | (value > 255) | ((length > 1) & (digits[starts] == 0))
    wrong |= (before != ord(",")) & (before != ord("["))
    wrong |= (after != ord(",")) & (after != ord("]"))
    if wrong.any():
        raise no_numbers(name)
    return value.astype(np.uint8)


def _is_frame(frame: bytes, shape: Sequence[int]) -> bool:
    """Says whether these are the commas and brackets around numbers of that shape."""
    length = 1
    for n in reversed(shape):
        length = n * length + n + 1
    # Each number counts as a byte in that, and is none here.
    if length - math.prod(shape) != len(frame):
        return False
    wanted = b""
    for n in reversed(shape):
        wanted = b"[%b%b]" % ((wanted + b",") * (n - 1), wanted)
    return wanted == frame


def _shape_of(frame: bytes) -> list[int]:
    """Reads the shape off the first element of each list; off a few, of deeply nested ones."""
    depth = min(len(frame) - len(frame.lstrip(b"[")), _DEEPEST)
    shape = []
    for n in range(depth):
        within = frame[: frame.find(b"]" * (n + 1))]
        shape.append(within.count(b"]" * n if n else b",") + 1)
    return shape[::-1]


def _printed(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"
