"""Keepalive pings of gRPC clients, which proxies, cameras and Triton's clients send: never refused.

By default gRPC ends a connection at the third ping within five minutes without data.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc

from fcn_client.stubs import segmentation_pb2 as pb
from fcn_client.stubs import segmentation_pb2_grpc as pb_grpc
from tests.drawing import png, street
from tests.serving import Server

PNG = png(street(40, 56))
PING_S = 1  # gRPC sends none sooner after another
PINGS = 5
OPTIONS = [
    ("grpc.keepalive_time_ms", 1000 * PING_S),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
READY, IDLE = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.IDLE


def test_a_stream_that_waits_and_a_connection_without_a_call(server: Server) -> None:
    def frames() -> Iterator[pb.SegmentStreamRequest]:
        for name in ("first", "second"):
            yield pb.SegmentStreamRequest(id=name, request=pb.SegmentRequest(image=PNG))
            if name == "first":
                time.sleep(PINGS * PING_S)

    states: list[grpc.ChannelConnectivity] = []
    # A channel with other options has a connection of its own.
    without = grpc.insecure_channel(server.target, options=[*OPTIONS, ("grpc.enable_retries", 0)])
    with without, grpc.insecure_channel(server.target, options=OPTIONS) as channel:
        idle = pb_grpc.SegmentationStub(without)
        idle.ListModels(pb.ListModelsRequest(), timeout=30)
        without.subscribe(states.append)
        answers = pb_grpc.SegmentationStub(channel).SegmentStream(frames(), timeout=60)
        assert [answer.id for answer in answers] == ["first", "second"]
        idle.ListModels(pb.ListModelsRequest(), timeout=30)
        assert set(states) <= {IDLE, READY}
        assert states.count(READY) == 1, "it is the same connection still"
