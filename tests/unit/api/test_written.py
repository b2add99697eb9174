"""Pixels written out as numbers are read exactly, or refused, and never become objects."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from service.api.oip.json_codec import MAX_MEMBERS, read
from service.api.oip.written import read_array, read_numbers, take_out
from service.errors import ImageTooLarge, InvalidParameter
from tests.drawing import UInt8Array

SHAPE = (2, 30, 50, 3)
PIXELS: UInt8Array = np.random.default_rng(1).integers(0, 256, SHAPE, np.uint8)
LONG = PIXELS.tolist() * 20
"""More than one piece of them."""


def request(data: Any, **how: Any) -> bytes:
    tensor = {"name": "image", "data": data, "datatype": "UINT8", "shape": [1]}
    return json.dumps({"inputs": [tensor], "id": "an id"}, **how).encode()


class Counted(bytes):
    """Counts the bytes in which something is looked for."""

    looked_at = 0

    def find(self, sub: Any, start: Any = None, end: Any = None, /) -> int:
        found = super().find(sub, start, end)
        stop = len(self) if end is None else end
        self.looked_at += (stop if found < 0 else found) - (start or 0)
        return found


@pytest.mark.parametrize("how", [{}, {"separators": (",", ":")}, {"indent": 1}])
@pytest.mark.parametrize("flat", [False, True])
def test_numbers_are_taken_out_and_read(how: dict[str, Any], flat: bool) -> None:
    data = np.ravel(LONG).tolist() if flat else LONG
    rest, arrays = take_out(request(data, **how))
    ((number, array),) = arrays.items()
    assert json.loads(rest) == json.loads(request(number))
    found = read_array(array, (40, *SHAPE[1:]), "image")
    np.testing.assert_array_equal(found, np.ravel(LONG))


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        request(["a", "b"]),
        request([1, "b"]),
        request([{"a": 1}, 2]),
        request("[1,2]"),
        request(None),
        b'{"id": "\\"data\\":[1,2]", "data"',
        b'{"data":[1,2',
        b'{"data"' + b" " * 100 + b":[1]}",
    ],
)
def test_all_else_stays(text: bytes) -> None:
    assert take_out(text) == (text, {})


def test_no_key_looks_beyond_the_next() -> None:
    text = Counted(b'{"data":[' * 200 + b"1," * 10_000)
    take_out(text)
    assert text.looked_at < 10 * len(text)


@pytest.mark.parametrize(
    "array",
    b"[] [1.5,2] [-1,2] [1,true] [1e1,2] [256,2] [1000,2] [01,2] [1_0,2] [1,2,x]".split()
    + [b"[1 2,3]", b"[[1]2,[]]", b"[1]2]", b"[1[2]]", b"[%b1,2]" % (b" " * 70_000)]
    + [b"[%b1,2]" % (b"0" * 70_000)],
)
def test_what_is_no_pixel_is_refused(array: bytes) -> None:
    with pytest.raises(InvalidParameter, match="whole numbers from 0 to 255"):
        read_array(array, (1, 2), "image")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (b"[1,2,3]", r"the shape \[3\]"),
        (b"[[[1,2]]]", r"the shape \[1,1,2\]"),
        (b"[[1],[2]]", r"the shape \[2,1\]"),
        (b"[[1],2]", "is ragged"),
        (b"[[1,2],[3]]", "is ragged"),
        (b"[1,2]]", "is ragged"),
        (b"[[1,2]", "is ragged"),
        (b"[1,,2]", "neither flat nor nested"),
        (b"[1,2,]", "neither flat nor nested"),
        (b"[,1,2]", "neither flat nor nested"),
        (b"[[1][2]]", "is ragged"),
        pytest.param(b"[" * 50_000 + b"1,2" + b"]" * 50_000, "is ragged", id="deep"),
    ],
)
def test_what_has_another_shape_is_refused(array: bytes, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words + r".*\[1,2\] says") as caught:
        read_array(array, (1, 2), "image")
    assert "neither flat nor nested" in str(caught.value)


@pytest.mark.parametrize("n", [1, 70_000])
def test_numbers_of_protobuf(n: int) -> None:
    assert read_numbers([7] * n, "image") == b"\x07" * n
    for wrong in ([256], [-1], []):
        with pytest.raises(InvalidParameter, match="whole numbers from 0 to 255"):
            read_numbers([7] * n + wrong if wrong else [], "image")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        request(["b"] * 20_000),
        request([{}] * 20_000),
        b'{"a":[1' + b",1" * 20_000 + b"]}",
        b'{"inputs":[' + b'{"data":[1]},' * 20_000 + b"{}]}",
    ],
)
def test_what_would_become_many_objects_is_refused(body: bytes) -> None:
    with pytest.raises(ImageTooLarge, match=f"{MAX_MEMBERS} members.*binary tensor data"):
        read(body, None, max_json_bytes=1 << 30)


@pytest.mark.parametrize("body", [b"[NaN]", b"{'a':1}", b"[-Infinity]", b'{"id":"\xff"}'])
def test_json_is_read_strictly(body: bytes) -> None:
    with pytest.raises(InvalidParameter, match="is not JSON"):
        read(body, None, max_json_bytes=1 << 30)


PIXEL = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3]}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"parameters": {"data": [1, 2, 3]}, "inputs": [{**PIXEL, "data": 0}]}),
        json.dumps({"parameters": {"data": [1, 2, 3]}, "inputs": [{**PIXEL, "data": [4, 5, 6]}]}),
        json.dumps({"inputs": [PIXEL]}).replace("}]}", ', "data": [1, 2, 3], "data": [1, 2, 3]}]}'),
        json.dumps({"inputs": [PIXEL]}).replace("}]}", ', "data": [1, ,], "data": [1, 2, 3]}]}'),
    ],
)
def test_an_array_is_read_where_it_stands_or_not_at_all(text: str) -> None:
    with pytest.raises(InvalidParameter, match="data"):
        read(text.encode(), None, max_json_bytes=1000)
