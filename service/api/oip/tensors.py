"""Reads and arranges the tensors of the Open Inference Protocol, without a transport.

In comes one tensor, `image`: pixels (UINT8 [N,H,W,3]) or image files (BYTES [N]). Out go
`label_map` (UINT8 [N,H,W]) and, when asked for, `overlay` (BYTES [N], PNG files) and, of a model
with logits, `logits` and `probabilities` (FP32 [N,C,H,W]).

Source: Open Inference Protocol, inference_rest.md; Triton's binary tensor data extension.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from service.api.oip.written import no_numbers, read_array
from service.core.types import Score, SegmentReply
from service.errors import ImageTooLarge, InvalidParameter, quoted

UInt8Array = npt.NDArray[np.uint8]
Image = bytes | UInt8Array
"""An image file, or uint8 RGB [H,W,3]."""

INPUT: Final = "image"
LABEL_MAP: Final = "label_map"
OVERLAY: Final = "overlay"
SCORES: Final = tuple(str(score) for score in Score)
"""Only models with logits have them."""
OUTPUTS: Final = {LABEL_MAP: "UINT8", OVERLAY: "BYTES", **dict.fromkeys(SCORES, "FP32")}
"""These may be asked for; each has its datatype."""

MAX_SCORES_BYTES: Final = 512 * 1024 * 1024
"""Limits the logits and probabilities in one answer."""
MAX_SCORES_AS_NUMBERS_BYTES: Final = 64 * 1024 * 1024
"""The same, as float32, where each number is written out: that takes several times the memory."""

MAX_IMAGES: Final = 64
"""Limits the images of one request."""

_AT_A_TIME: Final = 1 << 16
_LENGTH: Final = struct.Struct("<I")


Data = memoryview | bytes | list[bytes]
"""The elements of a tensor: their bytes (of BYTES, each after its length of four bytes,
little-endian), or a JSON array of numbers, or files."""


@dataclass(frozen=True, slots=True)
class InputTensor:
    """Holds one tensor as it was sent."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Data


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """Holds one tensor to send. data: an array for each image, or, of BYTES, an element."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Sequence[npt.NDArray[Any] | bytes]

    def to_bytes(self) -> bytes:
        """Joins all row by row; elements of BYTES each after its length."""
        return b"".join(map(_raw, self.data))

    def files(self) -> list[bytes]:
        """Lists the elements of a BYTES tensor."""
        return [bytes(item) for item in self.data]

    def numbers(self) -> Iterator[npt.NDArray[Any]]:
        """Goes through any other tensor row by row, some at a time: whoever writes them out holds
        up the other threads for no longer than that takes."""
        for item in self.data:
            flat = np.ravel(item)
            for at in range(0, len(flat), _AT_A_TIME):
                yield flat[at : at + _AT_A_TIME]


@dataclass(frozen=True, slots=True)
class InferRequest:
    """Holds one request. outputs: names, in the order asked for. binary: those to send as bytes,
    not as numbers."""

    id: str
    images: list[Image]
    outputs: tuple[str, ...]
    binary: frozenset[str]
    parameters: dict[str, Any]

    @property
    def scores_as_numbers(self) -> bool:
        """Says whether some scores are to be written out, number by number."""
        return any(name in SCORES and name not in self.binary for name in self.outputs)


def images_of(inputs: Sequence[InputTensor]) -> list[Image]:
    """Reads the images of the one input. Raises: InvalidParameter."""
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
        "[N,H,W,3] in RGB order, or BYTES, an image file in each element"
    )


def outputs_asked(names: Sequence[str]) -> tuple[str, ...]:
    """Checks the outputs to answer with; the label map when none is named.

    Raises: InvalidParameter.
    """
    for name in names:
        if name not in OUTPUTS:
            *most, last = OUTPUTS
            raise InvalidParameter(
                f"there is no output {quoted(name)}: use {', '.join(most)} or {last}"
            )
    if len(set(names)) != len(names):
        raise InvalidParameter("an output is asked for twice: ask once")
    return tuple(names) or (LABEL_MAP,)


def rendering(outputs: Sequence[str]) -> str | None:
    """Says what to render for these outputs."""
    return OVERLAY if OVERLAY in outputs else None


def scores_asked(outputs: Sequence[str]) -> tuple[Score, ...]:
    """Lists the arrays of scores among them."""
    return tuple(Score(name) for name in outputs if name in SCORES)


def output_tensors(outputs: Sequence[str], replies: Sequence[SegmentReply]) -> list[OutputTensor]:
    """Arranges replies in the order of `outputs`. All but overlays need images of one size."""
    scores = scores_asked(outputs)
    found = []
    for name in outputs:
        if name == OVERLAY:
            files = [reply.body for reply in replies]
            found.append(OutputTensor(name, OUTPUTS[name], (len(files),), files))
            continue
        arrays: list[npt.NDArray[Any]] = [
            reply.label_map if name == LABEL_MAP else reply.scores[scores.index(Score(name))]
            for reply in replies
        ]
        found.append(OutputTensor(name, OUTPUTS[name], (len(arrays), *arrays[0].shape), arrays))
    return found


def _raw(item: npt.NDArray[Any] | bytes) -> bytes | memoryview:
    if isinstance(item, bytes):
        return _LENGTH.pack(len(item)) + item
    return np.ascontiguousarray(item).data


def _from_pixels(tensor: InputTensor) -> list[Image]:
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
        raise no_numbers(INPUT)
    if isinstance(tensor.data, bytes):
        pixels = read_array(tensor.data, shape, INPUT)
    elif len(tensor.data) == wanted:
        pixels = np.frombuffer(tensor.data, np.uint8)
    else:
        raise InvalidParameter(
            f"input {INPUT!r} has {len(tensor.data)} bytes, and the shape {_shape(shape)} of UINT8 "
            f"needs {wanted}"
        )
    return list(pixels.reshape(shape))


def _from_files(tensor: InputTensor) -> list[Image]:
    shape = tensor.shape
    if len(shape) != 1 or not shape[0]:
        raise InvalidParameter(
            f"BYTES input {INPUT!r} has the shape {_shape(shape)}: send [N], N image files"
        )
    _check_number(shape[0])
    files = tensor.data if isinstance(tensor.data, list) else _elements(memoryview(tensor.data))
    if len(files) != shape[0]:
        raise InvalidParameter(
            f"input {INPUT!r} has {len(files)} elements, and its shape says {shape[0]}"
        )
    return list(files)


def _elements(data: memoryview) -> list[bytes]:
    """Reads BYTES, each after its length. Raises: InvalidParameter."""
    found: list[bytes] = []
    at = 0
    while at < len(data):
        if at + _LENGTH.size > len(data) or len(found) > MAX_IMAGES:
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


def _check_number(images: int) -> None:
    if images > MAX_IMAGES:
        raise ImageTooLarge(f"the request has {images} images: send {MAX_IMAGES} at most in one")


def _shape(shape: Sequence[int]) -> str:
    text = ",".join(map(str, shape[:8]))
    return f"[{text}{',...' if len(shape) > 8 else ''}]"
