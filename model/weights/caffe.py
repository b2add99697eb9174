"""Layers of a `.caffemodel`, which is a NetParameter message, read without Caffe.

Both formats: `layer` (LayerParameter, field 100) and the older `layers` (V1LayerParameter, 2).
Source of the field numbers: `src/caffe/proto/caffe.proto` of BVLC/caffe@00733bb.
"""

from __future__ import annotations

from functools import cache
from itertools import chain
from math import prod
from typing import Any, Final

import numpy as np
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from model.weights.layers import Array, Layer, LayerWeights, WeightsError

# message -> field -> (number, type, is repeated); what is not here is skipped.
_MESSAGES: Final[dict[str, dict[str, tuple[int, str, bool]]]] = {
    "BlobShape": {"dim": (1, "INT64", True)},
    "BlobProto": {
        "num": (1, "INT32", False),
        "channels": (2, "INT32", False),
        "height": (3, "INT32", False),
        "width": (4, "INT32", False),
        "data": (5, "FLOAT", True),
        "shape": (7, "BlobShape", False),
        "double_data": (8, "DOUBLE", True),
    },
    "V1LayerParameter": {
        "layer": (1, "BYTES", False),  # of the oldest format, V0
        "name": (4, "BYTES", False),
        "blobs": (6, "BlobProto", True),
    },
    "LayerParameter": {"name": (1, "BYTES", False), "blobs": (7, "BlobProto", True)},
    "NetParameter": {
        "layers": (2, "V1LayerParameter", True),
        "layer": (100, "LayerParameter", True),
    },
}
_MAX_SIDES = 32
"""Source: `kMaxBlobAxes` in blob.hpp of BVLC/caffe."""
_MAX_LAYERS = 10_000


@cache
def _net_parameter() -> Any:
    """Makes the class of the message from the table."""
    file = FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, (number, kind, repeated) in fields.items():
            field = described.field.add(name=name, number=number)
            many = FieldDescriptorProto.LABEL_REPEATED
            field.label = many if repeated else FieldDescriptorProto.LABEL_OPTIONAL
            if kind in _MESSAGES:
                field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".caffe.{kind}"
                continue
            field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind}")
            field.options.packed = repeated
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))


def caffe_layers(data: bytes) -> LayerWeights:
    """Reads every layer that has weights: its first blob and, as bias, its second.

    Raises: WeightsError if the bytes are no NetParameter, are cut short, or no layer has weights.
    """
    try:
        net = _net_parameter().FromString(data)
    except DecodeError as error:
        raise WeightsError(f"not a .caffemodel, or cut short: {error}") from error
    if any(layer.HasField("layer") for layer in net.layers):
        raise WeightsError(
            "the layers are in Caffe's oldest format (V0): convert the file with Caffe's "
            "upgrade_net_proto_binary"
        )
    layers: LayerWeights = {}
    for message in chain(net.layers, net.layer):
        if not message.blobs:
            continue
        name = _name(message.name)
        if name in layers:
            raise WeightsError(f"two layers are called {name!r}")
        if len(layers) >= _MAX_LAYERS:
            raise WeightsError(f"more than {_MAX_LAYERS} layers with weights")
        if len(message.blobs) > 2:
            raise WeightsError(
                f"layer {name!r} has {len(message.blobs)} blobs: want a weight, or a weight and a "
                "bias"
            )
        try:
            weight, *bias = (_array(blob) for blob in message.blobs)
        except WeightsError as error:
            raise WeightsError(f"layer {name!r}: {error}") from error
        layers[name] = Layer(weight, bias[0] if bias else None)
    if not layers:
        raise WeightsError("no layer has weights: not a .caffemodel, or only a network's text")
    return layers


def _name(name: bytes) -> str:
    try:
        if name:
            return name.decode("utf-8")
    except UnicodeDecodeError as error:
        raise WeightsError("a layer's name is not UTF-8") from error
    raise WeightsError("a layer with weights has no name")


def _array(blob: Any) -> Array:
    """Reads a blob as float32 or float64."""
    if blob.data and blob.double_data:
        raise WeightsError("a blob has both single and double precision data")
    count = len(blob.data) or len(blob.double_data)
    if not count:
        raise WeightsError("a blob has no data")
    old = [blob.num, blob.channels, blob.height, blob.width]
    sides = list(blob.shape.dim) if blob.HasField("shape") else old
    if len(sides) > _MAX_SIDES:
        raise WeightsError(f"a blob has more than {_MAX_SIDES} sides")
    # Plain ints: a product of hostile sides must not wrap around to the right number.
    if prod(sides) != count or min(sides, default=0) < 0:
        raise WeightsError(f"a blob of shape {sides} has {count} values")
    # The numbers lie one after another at the end of the message with nothing else in it, from
    # which they are taken a hundred times as fast as one by one.
    dtype = np.dtype("<f4" if blob.data else "<f8")
    for field in ("num", "channels", "height", "width", "shape"):
        blob.ClearField(field)
    blob.DiscardUnknownFields()
    raw = blob.SerializeToString()
    return np.frombuffer(raw, dtype, count, len(raw) - count * dtype.itemsize).reshape(sides)
