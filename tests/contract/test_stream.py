"""SegmentStream, and messages on the wire, against the real server."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from fcn_client.stubs import segmentation_pb2 as pb
from tests.contract.conftest import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS
from tests.drawing import png, street
from tests.serving import Server
from tests.waiting import until

IMAGES = [png(street(16 + n, 24, seed=n)) for n in range(4)]
METHOD = "/segmentation.v1.Segmentation/"
_Code = grpc.StatusCode


def item(number: int, **fields: Any) -> pb.SegmentStreamRequest:
    image = IMAGES[number % len(IMAGES)]
    return pb.SegmentStreamRequest(
        id=f"frame-{number}", request=pb.SegmentRequest(image=image, version="1"), **fields
    )


def answers(
    server: Server, messages: Iterable[pb.SegmentStreamRequest]
) -> list[pb.SegmentStreamResponse]:
    return list(server.stub.SegmentStream(iter(messages), timeout=60))


@pytest.fixture(scope="module")
def expected(server: Server) -> list[bytes]:
    """Asks Segment for IMAGES."""
    return [
        server.stub.Segment(pb.SegmentRequest(image=p, version="1"), timeout=30).body
        for p in IMAGES
    ]


def test_a_thousand_at_once(server: Server, expected: list[bytes]) -> None:
    """All are sent before an answer is read: none is lost, refused or mixed up."""
    seen = answers(server, [item(n) for n in range(1000)])
    assert len(seen) == 1000
    assert len({response.id for response in seen}) == 1000
    for response in seen:
        number = int(response.id.removeprefix("frame-"))
        assert response.response.body == expected[number % len(IMAGES)], response.error


def test_in_order(server: Server) -> None:
    options = pb.StreamOptions(ordered=True)
    small, large = png(street(8, 8)), png(street(120, 160))
    messages = [
        pb.SegmentStreamRequest(
            id=str(n), request=pb.SegmentRequest(image=small if n % 2 else large)
        )
        for n in range(10)
    ]
    seen = answers(server, [pb.SegmentStreamRequest(options=options), *messages])
    assert [response.id for response in seen] == [message.id for message in messages]
    assert [r.response.height_px for r in seen] == [120, 8] * 5


def test_one_by_one(server: Server) -> None:
    """A live source: the next frame is sent when the answer to the last has come."""
    turns: list[str] = []

    def frames() -> Iterator[pb.SegmentStreamRequest]:
        for n in range(5):
            turns.append("sent")
            yield item(n)
            while len(turns) < 2 * n + 2:
                time.sleep(0.001)

    for response in server.stub.SegmentStream(frames(), timeout=60):
        assert response.id == f"frame-{len(turns) // 2}"
        turns.append("read")
    assert turns == ["sent", "read"] * 5


def test_errors_end_nothing(server: Server, expected: list[bytes]) -> None:
    wrong = {
        "text": (3, "unsupported-image-format", pb.SegmentRequest(image=b"hello" * 9)),
        "model": (5, "unknown-model", pb.SegmentRequest(image=IMAGES[0], model="nope")),
        "alpha": (3, "invalid-parameter", pb.SegmentRequest(image=IMAGES[0], alpha=7)),
        "output": (3, "invalid-parameter", pb.SegmentRequest(image=IMAGES[0], output=77)),  # type: ignore[arg-type]
        "bytes": (3, "image-too-large", pb.SegmentRequest(image=bytes(MAX_IMAGE_BYTES + 1))),
    }
    messages = [item(0)]
    messages += [pb.SegmentStreamRequest(id=id, request=r) for id, (_, _, r) in wrong.items()]
    seen = {response.id: response for response in answers(server, [*messages, item(1)])}
    assert len(seen) == len(wrong) + 2
    for id, (code, kind, _) in wrong.items():
        error = seen[id].error
        assert (error.code, error.type) == (code, f"urn:fcn:problem:{kind}")
        assert len(error.message) > 20
        assert not error.HasField("retry_after_ms")
    assert [seen[f"frame-{n}"].response.body for n in (0, 1)] == expected[:2]


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"\xff\xff\xff", _Code.INVALID_ARGUMENT, "segmentation.proto"),
        (bytes(4 * MAX_IMAGE_PIXELS), _Code.RESOURCE_EXHAUSTED, "larger than max"),
    ],
)
@pytest.mark.parametrize("method", ["Segment", "SegmentStream"])
def test_a_message_that_is_none(
    server: Server,
    expected: list[bytes],
    method: str,
    body: bytes,
    code: grpc.StatusCode,
    words: str,
) -> None:
    """It ends its call, and neither the connection nor the calls beside it."""
    other = server.stub.SegmentStream(iter([item(n) for n in range(8)]), timeout=60)
    call = server.channel.stream_stream(METHOD + method, None, None)(iter([body]), timeout=30)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == code
    assert words in (caught.value.details() or "")
    assert {r.response.body for r in other} == set(expected)


def test_an_item_is_a_segment_to_the_operator(server: Server) -> None:
    counts = [
        f'fcn_requests_total{{code="OK",method="{method}",model="{model}",transport="grpc"}}'
        for method, model in (("Segment", "tiny"), ("SegmentStream", ""))
    ]
    before = [server.metric(series) for series in counts]
    call = server.stub.SegmentStream(
        iter([item(0), item(1)]), metadata=(("x-request-id", "a-drive"),), timeout=30
    )
    assert len(list(call)) == 2
    assert dict(call.trailing_metadata())["x-request-id"] == "a-drive"
    for series, count, more in zip(counts, before, (2, 1), strict=True):
        server.settles(series, count + more)
    until(lambda: server.log().count("grpc SegmentStream OK request_id=a-drive ") == 1, server.log)
    assert server.log().count("grpc Segment OK request_id=a-drive/frame-") == 2


def test_compressed_messages_are_read(server: Server, expected: list[bytes]) -> None:
    gzip = grpc.Compression.Gzip
    request = pb.SegmentRequest(image=IMAGES[0], version="1")
    assert server.stub.Segment(request, compression=gzip, timeout=30).body == expected[0]
    (only,) = server.stub.SegmentStream(iter([item(0)]), compression=gzip, timeout=30)
    assert only.response.body == expected[0]


def test_a_decompression_bomb_is_refused(server: Server) -> None:
    """100 MB of zeros are 100 KB of gzip; the limit is that of the message as it is unpacked."""

    def peak_kib() -> int:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0])

    before = peak_kib()
    bomb = pb.SegmentRequest(image=bytes(100_000_000))
    with pytest.raises(grpc.RpcError) as caught:
        server.stub.Segment(bomb, compression=grpc.Compression.Gzip, timeout=30)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == _Code.INVALID_ARGUMENT
    assert peak_kib() - before < 20_000
