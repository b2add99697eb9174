"""Writes `.caffemodel` files byte by byte, as Caffe's protocol buffers do."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Literal

import numpy as np

Format = Literal["layer", "layers"]
Blobs = list[np.ndarray]


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def shape(sides: tuple[int, ...]) -> bytes:
    """BlobProto's field 7: a BlobShape with a packed `dim`."""
    return message(7, message(1, b"".join(varint(side) for side in sides)))


def data(array: np.ndarray, *, double: bool = False, packed: bool = True) -> bytes:
    """BlobProto's field 5 (float) or 8 (double)."""
    field, kind, wire_type = (8, "<f8", 1) if double else (5, "<f4", 5)
    if packed:
        return message(field, array.astype(kind).tobytes())
    tag = varint(field << 3 | wire_type)
    return b"".join(tag + struct.pack(kind[0] + "fd"[double], x) for x in array.ravel().tolist())


def blob(array: np.ndarray, *, old: bool, double: bool = False, packed: bool = True) -> bytes:
    """A BlobProto; `old`: num, channels, height and width, missing sides 1, in front."""
    if old:
        sides = (1,) * (4 - array.ndim) + array.shape
        head = b"".join(number(field, side) for field, side in enumerate(sides, start=1))
        return head + data(array, double=double, packed=packed)
    return data(array, double=double, packed=packed) + shape(array.shape)


def layer(
    name: str, blobs: Blobs, form: Format, *, double: bool = False, packed: bool = True
) -> bytes:
    """One layer as a field of a NetParameter, among other fields that a reader must skip."""
    old = form == "layers"
    written = [blob(array, old=old, double=double, packed=packed) for array in blobs]
    if old:
        content = message(2, b"below") + message(3, b"above") + message(4, name.encode())
        content += number(5, 4) + b"".join(message(6, b) for b in written)
        content += varint(7 << 3 | 5) + struct.pack("<f", 1.0)  # blobs_lr
        return message(2, content)
    content = message(1, name.encode()) + message(2, b"Convolution") + message(3, b"below")
    content += b"".join(message(7, b) for b in written) + message(106, number(1, 64))
    return message(100, content)


def net(
    layers: Mapping[str, Blobs],
    form: Format = "layer",
    *,
    double: bool = False,
    packed: bool = True,
) -> bytes:
    """A NetParameter; a layer without blobs is written too."""
    written = [
        layer(name, blobs, form, double=double, packed=packed) for name, blobs in layers.items()
    ]
    return message(1, b"a net") + message(3, b"data") + number(5, 1) + b"".join(written)
