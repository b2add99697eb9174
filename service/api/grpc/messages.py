"""Makes messages of what callers sent: unpacked if it was compressed, and small but for its image.

protobuf makes an object of every part of a message, and of two bytes a hundred. So all of a message
but the fields that hold images is limited before it is parsed.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator, Mapping
from typing import Final, TypeVar, Union

from google.protobuf.message import DecodeError, Message

from service.api.uploads import Uploads
from service.errors import InvalidParameter, MessageTooLarge

M = TypeVar("M", bound=Message)
Bulk = Mapping[int, Union[int, "Bulk"]]
"""The fields, by number, that may be large: how many of their bytes count as one of the others, or,
of a message, which of its fields are so."""
FILES: Final = 1 << 40
"""Files and pixels as bytes are copied as they are, and do not count."""
NUMBERS: Final = 128
"""Numbers take four times the memory and are read one by one: up to 8 MiB of them."""
MAX_STRUCTURE_BYTES: Final = 64 * 1024
"""Limits what is around images."""

_PACKED: Final = (b"\x1f\x8b", b"\x78")
"""How gzip and deflate begin, and no message does: gRPC gives compressed messages as they are."""
_AT_A_TIME: Final = 1024 * 1024
_PACKED_AT_A_TIME: Final = 64 * 1024
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Wire types. Source: protobuf.dev, Encoding."""


async def parse(
    raw: bytes, kind: type[M], uploads: Uploads, max_bytes: int, bulk: Bulk
) -> tuple[M, int]:
    """Returns the message, and how many bytes it has unpacked.

    Raises: InvalidParameter when it is none of `kind`, or has too much around its images;
    MessageTooLarge, Overloaded while it is unpacked.
    """
    if raw.startswith(_PACKED):
        raw = await _unpack(raw, kind, uploads, max_bytes)
    try:
        left = _weigh(raw, 0, len(raw), bulk, MAX_STRUCTURE_BYTES)
        if left < 0:
            raise InvalidParameter(
                f"the {kind.DESCRIPTOR.name} has more than {MAX_STRUCTURE_BYTES} bytes around its "
                "images, or more than 8 MiB of numbers: send pixels in raw_input_contents, or "
                "image files, and fewer fields"
            )
        return kind.FromString(raw), len(raw)
    except (DecodeError, IndexError):
        raise malformed(kind) from None


def malformed(kind: type[Message]) -> InvalidParameter:
    """Refuses bytes that are no message of `kind`."""
    descriptor = kind.DESCRIPTOR
    return InvalidParameter(
        f"the message is no {descriptor.name}: use stubs generated from {descriptor.file.name}"
    )


async def _unpack(raw: bytes, kind: type[Message], uploads: Uploads, max_bytes: int) -> bytes:
    """Unpacks a little at a time, and counts it: it may become a thousand times as much.

    Not on a thread: what it frees would stay with that thread.
    """
    found: list[bytes] = []
    n_bytes = 0
    async with uploads.unpacking:
        with uploads.begin() as received:
            for some in _unpacked(raw, kind):
                n_bytes += len(some)
                if n_bytes > max_bytes:
                    raise MessageTooLarge(max_bytes)
                received(2 * len(some))  # the parts, and the whole
                found.append(some)
                await asyncio.sleep(0)
            return b"".join(found)


def _unpacked(raw: bytes, kind: type[Message]) -> Iterator[bytes]:
    """Raises: InvalidParameter."""
    unpacker = zlib.decompressobj(32 + zlib.MAX_WBITS)  # finds out which of both it is
    try:
        for at in range(0, len(raw), _PACKED_AT_A_TIME):
            packed = raw[at : at + _PACKED_AT_A_TIME]
            while packed:
                yield unpacker.decompress(packed, _AT_A_TIME)
                packed = unpacker.unconsumed_tail
        while not unpacker.eof:
            if not (some := unpacker.decompress(b"", _AT_A_TIME)):  # its end is missing
                raise malformed(kind)
            yield some
    except zlib.error:
        raise malformed(kind) from None


def _weigh(data: bytes, at: int, end: int, bulk: Bulk, left: int) -> int:
    """Subtracts from `left` what the fields take, bulk ones less; negative when it is too much.

    Raises: DecodeError, IndexError.
    """
    while at < end and left >= 0:
        began = at
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == _BYTES:
            n_bytes, at = _varint(data, at)
            left -= at - began
            weight = bulk.get(tag >> 3, 1)
            if isinstance(weight, int):
                left -= n_bytes // weight
            else:
                left = _weigh(data, at, min(at + n_bytes, end), weight, left)
            at += n_bytes
            continue
        if wire == _VARINT:
            _, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            at += 4 if wire == _FIXED32 else 8
        else:  # groups, which none of ours has
            raise DecodeError
        left -= at - began
    return left


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Reads a number. Returns it, and where it ends. Raises: IndexError, DecodeError."""
    value = shift = 0
    while (byte := data[at]) >= 0x80:
        value |= (byte & 0x7F) << shift
        shift += 7
        at += 1
        if shift > 63:
            raise DecodeError
    return value | byte << shift, at + 1
