"""Bodies however they are cut into chunks, and the limit while they arrive."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from python_multipart.multipart import MultipartParser

from service.api.http.body import MULTIPART_OVERHEAD_BYTES, read_image
from service.errors import (
    ImageTooLarge,
    InvalidParameter,
    ServiceError,
    UnsupportedImageFormat,
)
from tests.serving import ROOT

BOUNDARY = "a-boundary"

FORM = f"multipart/form-data; boundary={BOUNDARY}"


class Source:
    """A body in chunks that remembers how much of it was taken."""

    def __init__(self, chunks: Sequence[bytes]) -> None:
        self._chunks = chunks
        self.taken_bytes = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            self.taken_bytes += len(chunk)
            yield chunk


def read(
    chunks: Sequence[bytes] | Source,
    content_type: str | None = "image/jpeg",
    *,
    encoding: str | None = None,
    length: str | None = None,
    limit: int = 1000,
) -> bytes:
    source = chunks if isinstance(chunks, Source) else Source(chunks)
    return asyncio.run(read_image(aiter(source), content_type, encoding, length, limit))


def form(data: bytes, name: str = "image", disposition: str = "form-data") -> bytes:
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: {disposition}; name="{name}"; filename="a.jpg"\r\n'
    )
    return head.encode() + b"Content-Type: x/y\r\n\r\n" + data + f"\r\n--{BOUNDARY}--\r\n".encode()


def cut(body: bytes, sizes: Sequence[int]) -> list[bytes]:
    """The body in chunks of these sizes, and the rest."""
    chunks, at = [], 0
    for size in sizes:
        chunks.append(body[at : at + size])
        at += size
    return [*chunks, body[at:]]


@given(data=st.binary(max_size=300), sizes=st.lists(st.integers(0, 50), max_size=20))
def test_raw_and_form_give_the_bytes_back(data: bytes, sizes: list[int]) -> None:
    assert read(cut(data, sizes)) == data
    assert read(cut(form(data), sizes), FORM) == data


@given(data=st.binary(max_size=400), sizes=st.lists(st.integers(0, 50), max_size=20))
def test_no_form_breaks_anything(data: bytes, sizes: list[int]) -> None:
    """Whatever is sent as a form is an image or one of our errors."""
    with contextlib.suppress(ServiceError):
        read(cut(data, sizes), FORM)


@pytest.mark.parametrize("content_type", ["image/jpeg", FORM])
def test_reading_stops_at_the_limit(content_type: str) -> None:
    body = form(bytes(200_000)) if content_type == FORM else bytes(200_000)
    source = Source(cut(body, [100] * 1990))
    with pytest.raises(ImageTooLarge, match="1000 bytes"):
        read(source, content_type)
    assert source.taken_bytes <= 1000 + 400


def test_the_limit_is_exact() -> None:
    assert len(read([bytes(1000)])) == 1000
    assert len(read([form(bytes(1000))], FORM)) == 1000
    for chunks, content_type in (([bytes(1001)], "image/png"), ([form(bytes(1001))], FORM)):
        with pytest.raises(ImageTooLarge):
            read(chunks, content_type)


def test_a_form_of_headers_only_is_limited_too() -> None:
    source = Source([b"--" + BOUNDARY.encode() + b"\r\n"] + [b"\r\n" * 500] * 500)
    with pytest.raises(ServiceError):
        read(source, FORM)
    assert source.taken_bytes <= MULTIPART_OVERHEAD_BYTES + 3000
    preamble = Source([b"-" * 1000] * 500)
    with pytest.raises(ServiceError):
        read(preamble, FORM)
    assert preamble.taken_bytes <= MULTIPART_OVERHEAD_BYTES + 3000


def test_a_claim_is_refused_before_reading() -> None:
    source = Source([b"x"])
    with pytest.raises(ImageTooLarge):
        read(source, length="1001")
    assert source.taken_bytes == 0
    assert read([b"x"], length="1000") == b"x"
    assert read([b"x"], length="a lot") == b"x"


@pytest.mark.parametrize(
    "content_type",
    [None, "", "image/jpeg", "IMAGE/PNG", "image/tiff; q=1", "application/octet-stream"],
)
def test_types_that_are_read(content_type: str | None) -> None:
    assert read([b"x"], content_type) == b"x"


@pytest.mark.parametrize("content_type", ["text/plain", "image/gif", "image/svg+xml", "nonsense"])
def test_types_that_are_not(content_type: str) -> None:
    with pytest.raises(UnsupportedImageFormat, match="image/jpeg"):
        read([b"x"], content_type)


def test_encodings() -> None:
    assert read([b"x"], encoding="Identity") == b"x"
    with pytest.raises(UnsupportedImageFormat, match="gzip"):
        read([b"x"], encoding="gzip")


@given(sizes=st.lists(st.integers(0, 50), max_size=20))
@pytest.mark.parametrize(
    "preamble",
    [b"\r\n", b"to whom it may concern\r\n", b"--\r\n--" + BOUNDARY.encode()[:4] + b"\r\n"],
)
def test_what_stands_around_a_form_is_passed_over(preamble: bytes, sizes: list[int]) -> None:
    """Its preamble and its epilogue. Source: RFC 2046, section 5.1.1."""
    around = preamble + form(b"photo") + b"\r\nto nobody"
    assert read(cut(around, sizes), FORM) == b"photo"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"no boundary\r\n", "cut short"),
        (form(b"x", name="picture"), "'picture'"),
        (form(b"x", name="im\u00e4ge"), "call it 'image'"),
        (form(b"x").replace(b"Content-Disposition", b"Disposition"), "''"),
        (form(b"x")[: -len(BOUNDARY)], "cut short"),
        (b"", "cut short"),
        (form(b"x").replace(b"--\r\n", b"\r\n") + form(b"y"), "more than one"),
    ],
)
def test_wrong_forms(body: bytes, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        read([body], FORM)


async def left_of_a_form(name: str) -> int:
    """Counts the parsers that live on, without the garbage collector, when a form was read."""

    class Source:
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield form(b"abc", name)

    gc.collect()
    gc.disable()
    with contextlib.suppress(InvalidParameter):
        await read_image(aiter(Source()), FORM, None, None, 1000)
    return sum(isinstance(one, MultipartParser) for one in gc.get_objects())


@pytest.mark.parametrize("name", ["image", "photo"])
def test_nothing_of_a_form_is_kept(name: str) -> None:
    """The garbage collector may be long in coming, and images are large. In a process of its own,
    where nothing else has touched a parser."""
    code = (
        "import asyncio; from tests.unit.api.test_body import left_of_a_form as left; "
        f"print(asyncio.run(left({name!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "0\n"
