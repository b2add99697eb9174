"""The tensors of the Open Inference Protocol, of which neither HTTP nor gRPC is known here.

In comes one tensor, `image`: pixels (UINT8 [N,H,W,3]) or picture files (BYTES [N]). Out go
`label_map` (UINT8 [N,H,W]) and, when asked for, `overlay` (BYTES [N], PNG files).

Source: Open Inference Protocol, inference_rest.md; Triton's binary tensor data extension.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from service.core.segmenter import Output, SegmentReply
from service.errors import ImageTooLarge, InvalidParameter, quoted

UInt8Array = npt.NDArray[np.uint8]
Picture = bytes | UInt8Array
"""A picture file, or uint8 RGB [H,W,3]."""

INPUT: Final = "image"
LABEL_MAP: Final = "label_map"
OVERLAY: Final = "overlay"
OUTPUTS: Final = {LABEL_MAP: "UINT8", OVERLAY: "BYTES"}
"""What may be asked for, with its datatype."""

MAX_PICTURES: Final = 64
"""In one request."""

_LENGTH: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Input:
    """One tensor as it was sent. data: its elements as bytes (of BYTES, each after its length of
    four bytes, little-endian), or as a list."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview | list[Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """One tensor to send. data: uint8 of `shape` for UINT8, one item for each element of BYTES."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: UInt8Array | list[bytes]

    def to_bytes(self) -> bytes:
        """Row by row; elements of BYTES each after its length."""
        if isinstance(self.data, np.ndarray):
            return self.data.tobytes()
        return b"".join(_LENGTH.pack(len(item)) + item for item in self.data)


def pictures(inputs: Sequence[Input]) -> list[Picture]:
    """The pictures of the one input. Raises: InvalidParameter."""
    if len(inputs) != 1 or inputs[0].name != INPUT:
        names = ", ".join(quoted(tensor.name) for tensor in inputs[:4]) or "none"
        raise InvalidParameter(f"the inputs are {names}: send one, {INPUT!r}")
    (tensor,) = inputs
    if any(n < 0 for n in tensor.shape):
        raise InvalidParameter(f"the shape {_shape(tensor.shape)} has a negative dimension")
    match tensor.datatype:
        case "UINT8":
            return _from_pixels(tensor)
        case "BYTES":
            return _from_files(tensor)
    raise InvalidParameter(
        f"input {INPUT!r} is of datatype {quoted(tensor.datatype)}: send UINT8 pixels, "
        "[N,H,W,3] in RGB order, or BYTES, a picture file in each element"
    )


def outputs_asked(names: Sequence[str]) -> tuple[str, ...]:
    """The outputs to answer with; the label map when none is named. Raises: InvalidParameter."""
    for name in names:
        if name not in OUTPUTS:
            raise InvalidParameter(f"there is no output {quoted(name)}: use {' or '.join(OUTPUTS)}")
    if len(set(names)) != len(names):
        raise InvalidParameter("an output is asked for twice: ask once")
    return tuple(names) or (LABEL_MAP,)


def rendering(outputs: Sequence[str]) -> Output | None:
    """What to render for these outputs."""
    return Output.OVERLAY if OVERLAY in outputs else None


def answers(outputs: Sequence[str], replies: Sequence[SegmentReply]) -> list[Answer]:
    """In the order of `outputs`. The label maps must be of one size if they are among them."""
    found = []
    for name in outputs:
        data: UInt8Array | list[bytes]
        if name == LABEL_MAP:
            data = np.stack([reply.label_map for reply in replies])
            found.append(Answer(name, OUTPUTS[name], data.shape, data))
        else:
            data = [reply.body for reply in replies]
            found.append(Answer(name, OUTPUTS[name], (len(data),), data))
    return found


def _from_pixels(tensor: Input) -> list[Picture]:
    shape = tensor.shape
    if len(shape) != 4 or shape[3] != 3:
        raise InvalidParameter(
            f"UINT8 input {INPUT!r} has the shape {_shape(shape)}: send [N,H,W,3], RGB"
        )
    if not all(shape):
        raise InvalidParameter(f"the shape {_shape(shape)} holds no pixel: send at least one")
    _check_number(shape[0])
    wanted = math.prod(shape)
    if isinstance(tensor.data, list):
        pixels = _numbers(tensor.data, shape)
    elif len(tensor.data) == wanted:
        pixels = np.frombuffer(tensor.data, np.uint8)
    else:
        raise InvalidParameter(
            f"input {INPUT!r} has {len(tensor.data)} bytes, and the shape {_shape(shape)} of UINT8 "
            f"needs {wanted}"
        )
    return list(pixels.reshape(shape))


def _numbers(data: list[Any], shape: tuple[int, ...]) -> UInt8Array:
    """Of a list, flat or nested as the shape says. Raises: InvalidParameter."""
    try:
        values = np.array(data)
    except (ValueError, OverflowError) as error:  # ragged
        raise InvalidParameter(
            f"the data of input {INPUT!r} is neither flat nor nested as {_shape(shape)}"
        ) from error
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
        raise InvalidParameter(
            f"the data of input {INPUT!r} is not all whole numbers from 0 to 255, as UINT8 is"
        )
    if values.shape not in ((math.prod(shape),), shape):
        raise InvalidParameter(
            f"the data of input {INPUT!r} has the shape {_shape(values.shape)}: send it flat, or "
            f"nested as its shape {_shape(shape)} says"
        )
    return values.astype(np.uint8)


def _from_files(tensor: Input) -> list[Picture]:
    shape = tensor.shape
    if len(shape) != 1 or not shape[0]:
        raise InvalidParameter(
            f"BYTES input {INPUT!r} has the shape {_shape(shape)}: send [N], N picture files"
        )
    _check_number(shape[0])
    files = tensor.data if isinstance(tensor.data, list) else _elements(tensor.data)
    if len(files) != shape[0]:
        raise InvalidParameter(
            f"input {INPUT!r} has {len(files)} elements, and its shape says {shape[0]}"
        )
    return list(files)


def _elements(data: memoryview) -> list[bytes]:
    """Of BYTES, each after its length. Raises: InvalidParameter."""
    found: list[bytes] = []
    at = 0
    while at < len(data):
        if at + _LENGTH.size > len(data) or len(found) > MAX_PICTURES:
            raise _broken()
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + length > len(data):
            raise _broken()
        found.append(bytes(data[at : at + length]))
        at += length
    return found


def _broken() -> InvalidParameter:
    return InvalidParameter(
        f"the bytes of input {INPUT!r} are not BYTES elements: write each as its length, four "
        "bytes, little-endian, and then its content"
    )


def _check_number(pictures: int) -> None:
    if pictures > MAX_PICTURES:
        raise ImageTooLarge(
            f"the request has {pictures} pictures: send {MAX_PICTURES} at most in one"
        )


def _shape(shape: Sequence[int]) -> str:
    text = ",".join(map(str, shape[:8]))
    return f"[{text}{',...' if len(shape) > 8 else ''}]"
