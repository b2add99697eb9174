"""Takes the image out of a request's body by its type: the body itself, or the field of a form.

A body whose type says that it is an image goes past this: see `service.api.http.segment`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.api.uploads import check_announced, joined, read_raw, too_large
from service.errors import (
    InvalidParameter,
    UnsupportedImageFormat,
    quoted,
)

FIELD: Final = "image"
RAW_TYPES: Final = (
    "image/jpeg",
    "image/png",
    "image/webp",
    "image/bmp",
    "image/tiff",
    "application/octet-stream",
)
_ALIASES: Final = ("image/jpg", "image/x-ms-bmp", "image/x-bmp", "image/x-png", "image/x-tiff")
AS_IT_IS: Final = frozenset((*RAW_TYPES, *_ALIASES))
"""Types of a body that is an image and nothing else."""

# A single field needs a few hundred bytes around it; the rest is for generous clients.
MULTIPART_OVERHEAD_BYTES: Final = 16 * 1024
MAX_PART_HEADERS: Final = 8
MAX_PART_HEADER_BYTES: Final = 4 * 1024


async def read_image(
    stream: AsyncIterator[bytes],
    content_type: str | None,
    content_encoding: str | None,
    content_length: str | None,
    max_bytes: int,
) -> bytes:
    """Reads the bytes of the one image in the body.

    Raises: ImageTooLarge, UnsupportedImageFormat, InvalidParameter (a multipart body is wrong).
    """
    form = _form(content_type, content_encoding, max_bytes)
    limit = max_bytes if form is None else max_bytes + MULTIPART_OVERHEAD_BYTES
    check_announced(content_length, limit, max_bytes)
    if form is None:
        return await read_raw(stream, max_bytes)
    received = 0
    try:
        async for chunk in stream:
            received += len(chunk)
            if received > limit:
                raise too_large(max_bytes)
            form.feed(chunk)
        return await joined(form.image())
    finally:
        form.close()


def _form(content_type: str | None, content_encoding: str | None, max_bytes: int) -> _Form | None:
    """Makes what takes the body apart; None when the body is the image.

    Raises: UnsupportedImageFormat, InvalidParameter.
    """
    if content_encoding and content_encoding.strip().lower() != "identity":
        raise UnsupportedImageFormat(
            f"Content-Encoding {quoted(content_encoding)} is not read: send the image as it is, "
            "its format compresses already"
        )
    if content_type in AS_IT_IS:
        return None  # nothing to parse
    kind, options = parse_options_header(content_type)
    media_type = kind.decode("latin-1")
    if media_type == "multipart/form-data":
        return _Form(options.get(b"boundary", b""), max_bytes)
    if media_type and media_type not in AS_IT_IS:
        raise UnsupportedImageFormat(
            f"Content-Type {quoted(media_type)} is not read: send the image as the body with "
            f"its type, such as image/jpeg, or as the multipart/form-data field {FIELD!r}"
        )
    return None


class _Form:
    """Takes a multipart/form-data body apart, of which only one field, `image`, is allowed."""

    def __init__(self, boundary: bytes, max_bytes: int) -> None:
        if not boundary:
            raise InvalidParameter("multipart/form-data needs a boundary in its Content-Type")
        self._max_bytes = max_bytes
        # A line break before it, for the boundary may be what the body begins with.
        self._delimiter = b"\r\n--" + boundary
        self._preamble: bytearray | None = bytearray(b"\r\n")
        self._chunks: list[bytes] = []
        self._size = 0
        self._parts = 0
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begin,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value_data,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_end": self._end,
                },
                max_header_count=MAX_PART_HEADERS,
                max_header_size=MAX_PART_HEADER_BYTES,
            )
        except FormParserError as error:
            raise _broken() from error

    def feed(self, chunk: bytes) -> None:
        """Raises: InvalidParameter, ImageTooLarge."""
        if self._preamble is not None:
            chunk = self._after_preamble(self._preamble + chunk)
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _broken() from error

    def _after_preamble(self, data: bytearray) -> bytes:
        """Passes over what stands before the first boundary. Source: RFC 2046, section 5.1.1."""
        at = data.find(self._delimiter)
        if at < 0:
            self._preamble = data[-len(self._delimiter) :]  # it may begin with a part of it
            return b""
        self._preamble = None
        return bytes(data[at + 2 :])

    def image(self) -> list[bytes]:
        """Returns the parts of the image once the body is over.

        Raises: InvalidParameter when the body was cut or had no image.
        """
        if not self._ended:
            raise _broken()
        if not self._parts:
            raise InvalidParameter(f"the form is empty: send the image as field {FIELD!r}")
        return self._chunks

    def close(self) -> None:
        """Lets go of the parser: both know each other, and the image would stay with them."""
        del self._parser

    def _part_begin(self) -> None:
        self._parts += 1
        self._disposition = b""
        if self._parts > 1:
            raise InvalidParameter(
                f"the form has more than one field: send one, {FIELD!r}, and the options in the "
                "query string"
            )

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _header_value_data(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name != FIELD:
            raise InvalidParameter(
                f"the form's field is called {quoted(name)}: call it {FIELD!r}, and put options "
                "into the query string"
            )

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._size > self._max_bytes:
            raise too_large(self._max_bytes)
        self._chunks.append(data[start:end])

    def _end(self) -> None:
        self._ended = True


def _broken() -> InvalidParameter:
    return InvalidParameter(
        "the multipart/form-data body is broken or cut short: let an HTTP library write it, as "
        f"`curl -F {FIELD}=@photo.jpg` does"
    )
