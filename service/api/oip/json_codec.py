"""Requests and answers of the Open Inference Protocol as HTTP bodies: JSON, and raw bytes after it.

The binary tensor data extension puts the elements of a tensor behind the JSON, whose length the
header Inference-Header-Content-Length says. Without it all is JSON: pixels as numbers, flat or
nested, and elements of BYTES in base64, since files are no text.

Source: Triton's extension_binary_data.md.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any, Final

import orjson

from service.api.oip.parameters import flag, refuse_shared_memory, size_text
from service.api.oip.tensors import (
    INPUT,
    Data,
    InferRequest,
    InputTensor,
    OutputTensor,
    images_of,
    outputs_asked,
)
from service.api.oip.written import take_out
from service.core.types import SegmentReply
from service.errors import ImageTooLarge, InvalidParameter, quoted

LENGTH_HEADER: Final = "inference-header-content-length"
JSON_TYPE: Final = "application/json"
BINARY_TYPE: Final = "application/octet-stream"
MAX_MEMBERS: Final = 16_384
"""Limits the members and elements of a request's JSON beside its pixels."""


def json_length(header: str | None, body_length: int) -> int | None:
    """Says how many bytes of the body are JSON; None for all. Raises: InvalidParameter."""
    if header is None:
        return None
    if not (header.isascii() and header.isdigit() and len(header) < 19):
        raise InvalidParameter(f"Inference-Header-Content-Length is {quoted(header)}: no number")
    if int(header) > body_length:
        raise InvalidParameter(
            f"Inference-Header-Content-Length is {int(header)}, and the body has {body_length} "
            "bytes: send how many bytes of it are JSON"
        )
    return int(header)


def read(body: bytes, header: str | None, *, max_json_bytes: int) -> InferRequest:
    """Reads a request's body. header: Inference-Header-Content-Length, if any. CPU-bound for large
    JSON.

    A length of 0 says that the body is one image file and nothing else.

    Raises: InvalidParameter, ImageTooLarge.
    """
    length = json_length(header, len(body))
    if length == 0:
        return InferRequest("", [body], outputs_asked(()), frozenset(), {})
    json_bytes = len(body) if length is None else length
    if json_bytes > max_json_bytes:
        raise ImageTooLarge(
            f"the request has {json_bytes} bytes of JSON and this server takes {max_json_bytes}: "
            "send the pixels as binary tensor data, or send image files"
        )
    text, arrays = take_out(body if length is None else body[:length])
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > MAX_MEMBERS:
        raise ImageTooLarge(
            f"the JSON has more than {MAX_MEMBERS} members and elements besides an input's data "
            "of numbers: send the pixels as binary tensor data, or send image files"
        )
    try:
        document = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(
            "the body is not JSON; with binary tensors behind it, the header "
            "Inference-Header-Content-Length must say how long the JSON is"
        ) from error
    top = _object(document, "the request")
    parameters = _object(_optional(top, "parameters", {}), "parameters")
    request_id = _optional(top, "id", "")
    if not isinstance(request_id, str):
        raise InvalidParameter(f"the id is {quoted(json.dumps(request_id))}: send text")
    inputs, behind = [], memoryview(body)[len(body) if length is None else length :]
    for item in _list(top.get("inputs"), "inputs"):
        tensor, behind = _input(_object(item, "an input"), arrays, behind)
        inputs.append(tensor)
    if arrays:  # which nobody has read, so that it may be no JSON
        raise InvalidParameter('"data" is given twice, or where it is no input\'s: send it once')
    if len(behind):
        raise InvalidParameter(
            f"{len(behind)} bytes follow the tensors: the binary_data_size of the inputs must add "
            "up to what follows the JSON"
        )
    default = flag(parameters, "binary_data_output", False)
    asked = _list(_optional(top, "outputs", []), "outputs")
    wanted = [_object(item, "an output") for item in asked]
    names = outputs_asked([_text(item.get("name"), "an output's name") for item in wanted])
    binary = {name for name in names if default and not wanted}
    for item in wanted:
        own = _object(_optional(item, "parameters", {}), "an output's parameters")
        refuse_shared_memory(own)
        if own.get("classification"):
            raise InvalidParameter("classification is not offered: ask for the label map as it is")
        if flag(own, "binary_data", default):
            binary.add(item["name"])
    return InferRequest(request_id, images_of(inputs), names, frozenset(binary), parameters)


def write(
    request: InferRequest, first: SegmentReply, tensors: Sequence[OutputTensor]
) -> tuple[bytes, dict[str, str]]:
    """Prints a reply as a body and its headers. CPU-bound for large JSON."""
    outputs, behind = [], []
    for tensor in tensors:
        item: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if tensor.name in request.binary:
            behind.append(tensor.to_bytes())
            item["parameters"] = {"binary_data_size": len(behind[-1])}
        elif tensor.datatype == "BYTES":
            item["parameters"] = {"content_type": "base64"}
            item["data"] = [base64.b64encode(data).decode() for data in tensor.files()]
        else:
            item["data"] = orjson.Fragment(_numbers(tensor))
        outputs.append(item)
    document: dict[str, Any] = {
        "model_name": first.model,
        "model_version": first.version,
        "parameters": {"network_size": size_text(first)},
        "outputs": outputs,
    }
    if request.id:
        # By `json`, as it was read: orjson refuses half a surrogate pair.
        document["id"] = orjson.Fragment(json.dumps(request.id))
    head = orjson.dumps(document)
    if not behind:
        return head, {"Content-Type": JSON_TYPE}
    headers = {"Content-Type": BINARY_TYPE, "Inference-Header-Content-Length": str(len(head))}
    return b"".join((head, *behind)), headers


def _numbers(tensor: OutputTensor) -> bytes:
    """Prints a JSON array. What is no number, of a network gone wrong, is null: JSON has no NaN."""
    parts = (
        orjson.dumps(some, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1] for some in tensor.numbers()
    )
    return b"".join((b"[", b",".join(parts), b"]"))


def _input(
    item: dict[str, Any], arrays: dict[int, bytes], behind: memoryview
) -> tuple[InputTensor, memoryview]:
    """Reads a tensor, and takes its array of numbers. Returns it, and the bytes behind that are not
    its own."""
    name = _text(item.get("name"), "an input's name")
    datatype = _text(item.get("datatype"), "an input's datatype")
    shape = _list(item.get("shape"), "an input's shape")
    if not all(type(n) is int for n in shape):
        raise InvalidParameter(f"the shape of input {quoted(name)} is not all whole numbers")
    parameters = _object(_optional(item, "parameters", {}), "an input's parameters")
    refuse_shared_memory(parameters)
    size = parameters.get("binary_data_size")
    data: Data
    if size is None:
        at = item.get("data")
        if type(at) is int and at in arrays:
            data = [_file(at)] if datatype == "BYTES" else arrays.pop(at)
        else:
            listed = _list(at, "an input's data")
            data = [_file(text) for text in listed] if datatype == "BYTES" else []
    else:
        if type(size) is not int or size < 0:
            raise InvalidParameter(f"binary_data_size of input {quoted(name)} is no length")
        if item.get("data") is not None:
            raise InvalidParameter(
                f"input {quoted(name)} has data and a binary_data_size: send one of them"
            )
        if size > len(behind):
            raise InvalidParameter(
                f"binary_data_size of input {quoted(name)} is {size}, and {len(behind)} bytes "
                "follow the JSON: see the header Inference-Header-Content-Length"
            )
        data, behind = behind[:size], behind[size:]
    return InputTensor(name, datatype, tuple(shape), data), behind


def _file(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise InvalidParameter(
            f"an element of BYTES input {INPUT!r} is not base64: in JSON an image file is sent in "
            "base64; as binary tensor data, as it is"
        ) from error


def _refuse(constant: str) -> None:
    """Refuses NaN, which JSON has not."""
    raise ValueError(constant)


def _optional(document: dict[str, Any], name: str, default: Any) -> Any:
    """Reads a member that may be left out; null, which some clients send then, is the same."""
    value = document.get(name)
    return default if value is None else value


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidParameter(f"{what} must be a JSON object")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidParameter(f"{what} must be a JSON array: it is missing, or something else")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidParameter(f"{what} must be text: it is missing, or something else")
    return value
