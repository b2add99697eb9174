"""The wire format of protocol buffers, as much as it takes to find fields and numbers.

Every length is checked against what is left of the file before it is used, so a damaged or hostile
file costs no more memory than it has bytes.
Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from model.weights.layers import Array, WeightsError

VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
FIXED32: Final = 5

_MAX_VARINT_BYTES = 10
_RUN = 1 << 16
"""Unpacked numbers looked at together."""


class Field(NamedTuple):
    """`value` is an int for VARINT, else the field's bytes. `end`: where the next field starts."""

    number: int
    wire_type: int
    value: int | memoryview
    end: int


def fields(message: memoryview, start: int = 0) -> Iterator[Field]:
    """The fields of `message` from byte `start` on. Raises: WeightsError."""
    at = start
    while at < len(message):
        field = read_field(message, at)
        yield field
        at = field.end


def read_field(message: memoryview, at: int) -> Field:
    """The field that starts at byte `at`. Raises: WeightsError."""
    tag, at = varint(message, at)
    number, wire_type = tag >> 3, tag & 7
    if number == 0:
        raise WeightsError("a field has the number 0")
    if wire_type == VARINT:
        value, at = varint(message, at)
        return Field(number, wire_type, value, at)
    if wire_type == FIXED64:
        size = 8
    elif wire_type == FIXED32:
        size = 4
    elif wire_type == BYTES:
        size, at = varint(message, at)
    else:
        raise WeightsError(f"field {number} has the unknown wire type {wire_type}")
    if size > len(message) - at:
        raise WeightsError(
            f"field {number} says {size} bytes, but {len(message) - at} are left: cut short?"
        )
    return Field(number, wire_type, message[at : at + size], at + size)


def varint(message: memoryview, at: int) -> tuple[int, int]:
    """An unsigned number of up to 64 bits and where it ends. Raises: WeightsError."""
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        if at >= len(message):
            raise WeightsError("the file ends inside a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise WeightsError("a number is longer than 64 bits")


def packed(field: Field, dtype: str) -> Array:
    """The numbers of a packed field, without a copy. Raises: WeightsError."""
    item = np.dtype(dtype).itemsize
    if isinstance(field.value, int) or len(field.value) % item:
        raise WeightsError(f"field {field.number} is no list of {item}-byte numbers")
    return np.frombuffer(field.value, dtype)


def unpacked_run(message: memoryview, at: int, dtype: str) -> tuple[Array, int]:
    """The numbers of all unpacked fields with the tag of the one at `at` that follow one another
    there, and where they end. For tags of one byte.
    """
    record = np.dtype([("tag", "u1"), ("value", dtype)])
    tag = message[at]
    parts: list[Array] = []
    while (count := min(_RUN, (len(message) - at) // record.itemsize)) > 0:
        chunk = np.frombuffer(message, record, count, at)
        others = np.flatnonzero(chunk["tag"] != tag)
        length = int(others[0]) if others.size else count
        parts.append(chunk["value"][:length])
        at += length * record.itemsize
        if length < count:
            break
    return np.concatenate(parts), at
