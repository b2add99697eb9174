"""A network's ONNX file: read, checked, and described."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
from onnx import TensorProto, helper
from onnx_ir.passes import common

from model.export.adopt.options import AdoptError
from model.export.onnx_file import attributes, first_line

__all__ = ["AdoptError", "Network", "open_network"]

OLDEST_OPSET: Final = 11
"""The first whose Resize has half-pixel and aligned corners. Older files are converted."""
_CONVERTED_OPSET: Final = 18
_IR_VERSION: Final = 8
"""An older file is raised to it."""
_FLOATS: Final = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE))
INTEGERS: Final[dict[int, str]] = {
    TensorProto.UINT8: "uint8",
    TensorProto.UINT16: "uint16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
}
"""Kinds of input that take bytes as they are."""
_MOST_BYTES: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Network:
    """Describes a network to be adopted.

    `proto`: weights inside, constants as initializers. `path`: the file as it was given.

    `input` and `output` are tensor names, `layout` is the input's, "NCHW" or "NHWC".
    `height_px`, `width_px`: the only ones it takes, or None for a free side. `one_at_a_time`: its
    batch is fixed to one image.
    """

    path: Path
    proto: onnx.ModelProto
    input: str
    output: str
    dtype: int
    layout: str
    height_px: int | None
    width_px: int | None
    one_at_a_time: bool
    precision: str

    @property
    def opset(self) -> int:
        return _opset(self.proto)


def open_network(
    path: Path, *, output: str | None = None, layout: str | None = None, opset: int = OLDEST_OPSET
) -> Network:
    """Reads a network's file and describes it.

    `output`: which, where there are several. `layout`: of the input, where it cannot be seen.

    opset: what the graph is at least brought to. Raises: AdoptError.
    """
    proto = _passed(
        path, _read(path), common.InlinePass(), common.RemoveInitializersFromInputsPass()
    )
    output = _output(proto.graph, output)
    kept = [value for value in proto.graph.output if value.name == output]
    del proto.graph.output[:]
    proto.graph.output.extend(kept)
    proto = _passed(
        path,
        _at_opset(proto, max(opset, OLDEST_OPSET), path),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.RemoveUnusedNodesPass(),
    )
    value = _image_input(proto.graph, path)
    # Exporters wrote 0 and -1, too, for what may be anything.
    dims = [d.dim_value if d.dim_value > 0 else None for d in _dims(value)] or [None] * 4
    layout = layout or _layout(value.name, dims)
    if dims[layout.index("C")] not in (3, None):
        raise AdoptError(
            f"input {value.name!r} has {dims[layout.index('C')]} channels as {layout}: only "
            "networks of RGB or BGR images can be adopted"
        )
    if dims[0] not in (None, 1):
        raise AdoptError(
            f"input {value.name!r} takes exactly {dims[0]} images at once: export the network "
            "with a dynamic batch, or for one image"
        )
    return Network(
        path=path,
        proto=proto,
        input=value.name,
        output=output,
        dtype=value.type.tensor_type.elem_type,
        layout=layout,
        height_px=dims[layout.index("H")],
        width_px=dims[layout.index("W")],
        one_at_a_time=dims[0] == 1,
        precision=_precision(proto.graph),
    )


def _read(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise AdoptError(f"there is no file {path}")
    try:
        proto = onnx.load(str(path))
    except Exception as error:  # protobuf's errors share no base class with onnx's
        raise AdoptError(
            f"{path} cannot be read as an ONNX model: {first_line(error)}; what it keeps in other "
            "files must lie beside it"
        ) from error
    weights = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    if weights > _MOST_BYTES:
        raise AdoptError(
            f"{path} has {weights / 2**30:.1f} GiB of weights and one ONNX file holds 2: export "
            "the network in fp16"
        )
    # Until IR version 4, every weight had to be listed as an input, too.
    proto.ir_version = max(proto.ir_version, _IR_VERSION)
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.HasField("tensor_type"):  # the checker wants a shape, if only an empty one
            value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(proto)
    except Exception as error:
        raise AdoptError(
            f"{path} is not a valid ONNX model, so export it anew: {first_line(error)}"
        ) from error
    return proto


def _opset(proto: onnx.ModelProto) -> int:
    return next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)


def _at_opset(proto: onnx.ModelProto, oldest: int, path: Path) -> onnx.ModelProto:
    version, newest = _opset(proto), onnx.defs.onnx_opset_version()
    if version > newest:
        raise AdoptError(
            f"{path} has opset {version} and this version of onnx knows up to {newest}: export "
            f"the network at opset {_CONVERTED_OPSET}, or install a newer onnx"
        )
    if version >= oldest:
        return proto
    # Only averaging needs more than the oldest.
    instead = ", or say --no-antialias" if version >= OLDEST_OPSET else ""
    try:
        converted = onnx.version_converter.convert_version(proto, _CONVERTED_OPSET)
        if version < OLDEST_OPSET:
            _resized_as_before(converted.graph)
        onnx.checker.check_model(converted)
    except Exception as error:
        raise AdoptError(
            f"{path} has opset {version}, {oldest} is needed, and it cannot be converted "
            f"({first_line(error)}): export the network at opset {_CONVERTED_OPSET}{instead}"
        ) from error
    return converted


def _resized_as_before(graph: onnx.GraphProto) -> None:
    """Name the rule that Upsample and the first Resize went by, which the converter forgets."""
    for node in graph.node:
        if node.op_type == "Resize":
            mode = attributes(node).get("mode", b"nearest")
            rule = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            del node.attribute[:]
            for name, value in {"mode": mode, **rule}.items():
                node.attribute.append(helper.make_attribute(name, value))


def _passed(path: Path, proto: onnx.ModelProto, *passes: ir.passes.PassBase) -> onnx.ModelProto:
    try:
        return ir.to_proto(ir.passes.Sequential(*passes)(ir.from_proto(proto)).model)
    except Exception as error:  # of whatever a graph may hold
        raise AdoptError(
            f"{path} has what onnx_ir cannot take ({first_line(error)}): export the network at "
            f"opset {_CONVERTED_OPSET} with standard operators"
        ) from error


def _image_input(graph: onnx.GraphProto, path: Path) -> onnx.ValueInfoProto:
    if len(graph.input) != 1:
        named = ", ".join(described(value) for value in graph.input) or "none"
        raise AdoptError(
            f"{path} has {len(graph.input)} inputs ({named}): only a network with one, the image, "
            "can be adopted"
        )
    (value,) = graph.input
    kind = value.type.tensor_type
    known = kind.elem_type in _FLOATS or kind.elem_type in INTEGERS
    if not known or len(_dims(value)) not in (0, 4):
        raise AdoptError(
            f"input {described(value)} is no image: export the network with one of float, float16, "
            "double, uint8, int32 or int64 and four dimensions, as [N,3,H,W] or [N,H,W,3]"
        )
    return value


def _layout(name: str, dims: list[int | None]) -> str:
    first, last = dims[1] == 3, dims[3] == 3
    if first != last:
        return "NCHW" if first else "NHWC"
    shown = ",".join("?" if d is None else str(d) for d in dims)
    if not first and None not in (dims[1], dims[3]):
        raise AdoptError(
            f"input {name!r} is [{shown}], without 3 channels: only networks of RGB or BGR "
            "images can be adopted"
        )
    raise AdoptError(
        f"input {name!r} is [{shown}], which does not say where its channels are: say "
        "--input-layout NCHW or NHWC"
    )


def _output(graph: onnx.GraphProto, wanted: str | None) -> str:
    names = [value.name for value in graph.output]
    if wanted is None and len(names) == 1:
        wanted = names[0]
    listed = ", ".join(described(value) for value in graph.output)
    if wanted is None:
        raise AdoptError(f"the network has {len(names)} outputs: say --output with one of {listed}")
    if wanted not in names:
        raise AdoptError(f"there is no output {wanted!r}: the network has {listed}")
    (value,) = (value for value in graph.output if value.name == wanted)
    if not value.type.HasField("tensor_type"):
        raise AdoptError(
            f"output {wanted!r} is a {value.type.WhichOneof('value')}, not a tensor: export the "
            "network with each result as an output of its own"
        )
    return str(wanted)


def _precision(graph: onnx.GraphProto) -> str:
    """Name the precision of most of the weights; int8 if some of the network is."""
    if any(n.op_type in ("DequantizeLinear", "QLinearConv", "ConvInteger") for n in graph.node):
        return "int8"
    kinds: tuple[int, ...] = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    sizes = dict.fromkeys(kinds, 0)
    for tensor in graph.initializer:
        if tensor.data_type in sizes:
            sizes[tensor.data_type] += int(np.prod(tensor.dims))
    most = max(sizes, key=lambda kind: sizes[kind])
    return dict(zip(kinds, ("fp32", "fp16", "bf16"), strict=True))[most]


def _dims(value: onnx.ValueInfoProto) -> list[Any]:
    return list(value.type.tensor_type.shape.dim)


def described(value: onnx.ValueInfoProto) -> str:
    """Writes `'out' float[N,21,H,W]`, as far as the file says so."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return f"{value.name!r} {str(value.type.WhichOneof('value')).removesuffix('_type')}"
    name = TensorProto.DataType.Name(kind.elem_type).lower()
    dims = (
        str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in _dims(value)
    )
    return f"{value.name!r} {name}[{','.join(dims)}]"
