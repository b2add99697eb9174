"""Layers of a `.caffemodel`, which is a NetParameter message, read without Caffe.

Both formats: `layer` (LayerParameter, field 100) and the older `layers` (V1LayerParameter, 2).
Source of the field numbers: `src/caffe/proto/caffe.proto` of BVLC/caffe@00733bb, messages
NetParameter, LayerParameter, V1LayerParameter, BlobProto and BlobShape.
"""

from __future__ import annotations

from math import prod

import numpy as np

from model.weights.layers import Array, Layer, LayerWeights, WeightsError
from model.weights.protobuf import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    Field,
    fields,
    packed,
    read_field,
    unpacked_run,
    varint,
)

_LAYER, _V1_LAYER = 100, 2
_NAME_AND_BLOBS = {_LAYER: (1, 7), _V1_LAYER: (4, 6)}
_V0_LAYER = 1
_DATA, _SHAPE, _DOUBLE_DATA = 5, 7, 8
_OLD_SHAPE = (1, 2, 3, 4)
"""num, channels, height, width"""
_MAX_SIDES = 32
"""Source: `kMaxBlobAxes` in blob.hpp of BVLC/caffe."""
_MAX_LAYERS = 10_000


def caffe_layers(data: bytes) -> LayerWeights:
    """Every layer that has weights: its first blob and, as bias, its second.

    Raises: WeightsError if the bytes are no NetParameter, are cut short, or no layer has weights.
    """
    layers: LayerWeights = {}
    for field in fields(memoryview(data)):
        if field.number not in _NAME_AND_BLOBS:
            continue
        name, blobs = _layer(_bytes(field), *_NAME_AND_BLOBS[field.number], field.number)
        if not blobs:
            continue
        if not name:
            raise WeightsError("a layer with weights has no name")
        if name in layers:
            raise WeightsError(f"two layers are called {name!r}")
        if len(layers) >= _MAX_LAYERS:
            raise WeightsError(f"more than {_MAX_LAYERS} layers with weights")
        if len(blobs) > 2:
            raise WeightsError(
                f"layer {name!r} has {len(blobs)} blobs: want a weight, or a weight and a bias"
            )
        layers[name] = Layer(blobs[0], blobs[1] if len(blobs) == 2 else None)
    if not layers:
        raise WeightsError("no layer has weights: not a .caffemodel, or only a network's text")
    return layers


def _layer(
    message: memoryview, name_field: int, blobs_field: int, kind: int
) -> tuple[str, list[Array]]:
    name, blobs = "", []
    for field in fields(message):
        if field.number == name_field:
            try:
                name = bytes(_bytes(field)).decode("utf-8")
            except UnicodeDecodeError as error:
                raise WeightsError("a layer's name is not UTF-8") from error
        elif field.number == blobs_field:
            try:
                blobs.append(_blob(_bytes(field)))
            except WeightsError as error:
                raise WeightsError(f"layer {name!r}: {error}") from error
        elif field.number == _V0_LAYER and kind == _V1_LAYER:
            raise WeightsError(
                "the layers are in Caffe's oldest format (V0): convert the file with Caffe's "
                "upgrade_net_proto_binary"
            )
    return name, blobs


def _blob(message: memoryview) -> Array:
    """float32 or float64 array of a BlobProto."""
    old = dict.fromkeys(_OLD_SHAPE, 0)
    shape: list[int] | None = None
    parts: dict[int, list[Array]] = {_DATA: [], _DOUBLE_DATA: []}
    at = 0
    while at < len(message):
        field = read_field(message, at)
        end = field.end
        if field.number in _OLD_SHAPE and isinstance(field.value, int):
            old[field.number] = field.value
        elif field.number == _SHAPE:
            shape = _shape(_bytes(field))
        elif field.number == _DATA and field.wire_type == FIXED32:
            run, end = unpacked_run(message, at, "<f4")
            parts[_DATA].append(run)
        elif field.number == _DOUBLE_DATA and field.wire_type == FIXED64:
            run, end = unpacked_run(message, at, "<f8")
            parts[_DOUBLE_DATA].append(run)
        elif field.number in parts:
            parts[field.number].append(packed(field, "<f4" if field.number == _DATA else "<f8"))
        at = end
    if parts[_DATA] and parts[_DOUBLE_DATA]:
        raise WeightsError("a blob has both single and double precision data")
    chunks = parts[_DATA] or parts[_DOUBLE_DATA]
    values = np.concatenate(chunks) if len(chunks) > 1 else chunks[0] if chunks else np.empty(0)
    if not values.size:
        raise WeightsError("a blob has no data")
    # Plain ints: a product of hostile sides must not wrap around to the right number.
    sides = [old[number] for number in _OLD_SHAPE] if shape is None else shape
    if prod(sides) != values.size:
        raise WeightsError(f"a blob of shape {sides} has {values.size} values")
    return values.reshape(sides)


def _shape(message: memoryview) -> list[int]:
    """BlobShape: `dim`, field 1, packed or not."""
    sides: list[int] = []
    for field in fields(message):
        if field.number != 1:
            continue
        if field.wire_type == VARINT and isinstance(field.value, int):
            sides.append(field.value)
            continue
        numbers, at = _bytes(field), 0
        while at < len(numbers) and len(sides) <= _MAX_SIDES:
            side, at = varint(numbers, at)
            sides.append(side)
    if len(sides) > _MAX_SIDES:
        raise WeightsError(f"a blob has more than {_MAX_SIDES} sides")
    return sides


def _bytes(field: Field) -> memoryview:
    if field.wire_type != BYTES or isinstance(field.value, int):
        raise WeightsError(f"field {field.number} is no message: not a .caffemodel")
    return field.value
