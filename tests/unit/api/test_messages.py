"""A gRPC message is unpacked, counted and limited before protobuf sees it."""

from __future__ import annotations

import gzip
import zlib

import pytest

from service.api.grpc.messages import FILES, MAX_STRUCTURE_BYTES, NUMBERS, Bulk, parse
from service.api.stubs import inference_pb2 as oip
from service.api.stubs import segmentation_pb2 as pb
from service.api.uploads import Uploads
from service.errors import InvalidParameter, MessageTooLarge, Overloaded

BULK: Bulk = {7: FILES, 5: {5: {8: FILES, 4: NUMBERS}}}
REQUEST = pb.SegmentRequest(image=b"an image", model="a", classes=["road", "car"])
MAX_BYTES = 20_000_000


def uploads(max_bytes: int = 256 << 20) -> Uploads:
    return Uploads(max_count=9, max_bytes=max_bytes, timeout_s=5, rejected=lambda reason: None)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zlib.compress])
async def test_a_message_is_read_as_it_is_or_packed(pack: object) -> None:
    assert callable(pack)
    raw = REQUEST.SerializeToString()
    found, n_bytes = await parse(pack(raw), pb.SegmentRequest, uploads(), MAX_BYTES, {1: FILES})
    assert (found, n_bytes) == (REQUEST, len(raw))


@pytest.mark.parametrize("n_bytes", [10, 3_000_000])
@pytest.mark.parametrize("cut", [1, 9])
async def test_a_packed_message_without_its_end_is_none(n_bytes: int, cut: int) -> None:
    packed = gzip.compress(pb.SegmentRequest(image=bytes(n_bytes)).SerializeToString())
    for broken in (packed[:-cut], packed[:10] + b"\xff" * 9):
        with pytest.raises(InvalidParameter, match=r"no SegmentRequest.*segmentation\.proto"):
            await parse(broken, pb.SegmentRequest, uploads(), MAX_BYTES, {1: FILES})


async def test_what_is_too_large_unpacked_is_refused_on_the_way() -> None:
    bomb = gzip.compress(bytes(MAX_BYTES + 1))
    limit = uploads()
    with pytest.raises(MessageTooLarge, match=f"larger than {MAX_BYTES} bytes.* unpacked"):
        await parse(bomb, pb.SegmentRequest, limit, MAX_BYTES, {1: FILES})
    assert limit.held == (0, 0)


async def test_what_is_unpacked_counts_as_an_upload() -> None:
    packed = gzip.compress(bytes(5_000_000))
    limit = uploads(max_bytes=9_000_000)
    with limit.begin(), pytest.raises(Overloaded):
        await parse(packed, pb.SegmentRequest, limit, MAX_BYTES, {1: FILES})
    assert limit.held == (0, 0)


def numbers(n: int) -> bytes:
    request = oip.ModelInferRequest()
    request.inputs.add(name="image").contents.uint_contents.extend([3] * n)
    return request.SerializeToString()


def files(n_bytes: int) -> bytes:
    request = oip.ModelInferRequest(raw_input_contents=[bytes(n_bytes)])
    request.inputs.add(name="image").contents.bytes_contents.append(bytes(n_bytes))
    return request.SerializeToString()


@pytest.mark.parametrize("raw", [b"", numbers(8_000_000), files(9_000_000)])
async def test_images_may_be_large(raw: bytes) -> None:
    found, _ = await parse(raw, oip.ModelInferRequest, uploads(), MAX_BYTES, BULK)
    assert found.SerializeToString() == raw


@pytest.mark.parametrize(
    "raw",
    {
        "inputs without anything": b"\x2a\0" * MAX_STRUCTURE_BYTES,
        "outputs": b"\x32\0" * MAX_STRUCTURE_BYTES,
        "files without anything": b"\x3a\0" * MAX_STRUCTURE_BYTES,
        "a long name": b"\x0a\x80\x80\x08" + b"a" * (1 << 17),
        "numbers": numbers(9_000_000),
        "unknown fields": b"\xf8\x01\x01" * MAX_STRUCTURE_BYTES,
        "fixed": b"\x7d1234" * MAX_STRUCTURE_BYTES,
    }.values(),
)
async def test_all_else_is_small(raw: bytes) -> None:
    with pytest.raises(InvalidParameter, match="raw_input_contents, or image files"):
        await parse(raw, oip.ModelInferRequest, uploads(), MAX_BYTES, BULK)


@pytest.mark.parametrize("raw", [b"\xff", b"\xff" * 20, b"\x0a", b"\x0b\x0c", b"\x3a\x05ab"])
async def test_what_is_no_message_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidParameter, match="no ModelInferRequest"):
        await parse(raw, oip.ModelInferRequest, uploads(), MAX_BYTES, BULK)
