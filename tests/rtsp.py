"""A camera for tests: serves frames over RTSP on this machine, to one caller after the other.

RTP travels inside the RTSP connection, as `fcn predict` asks for it. Sources: RFC 2326, sections 10
and 10.12; RFC 3550, section 5.1; RFC 6416, section 5 (MPEG-4 video).
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

_PART_BYTES = 1200
_RATE = 10
_CLOCK = 90_000
_SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\n"
    f"m=video 0 RTP/AVP 96\r\na=rtpmap:96 MP4V-ES/{_CLOCK}\r\na=control:video\r\n"
)


def encoded(frames: Iterable[npt.NDArray[np.uint8]]) -> list[bytes]:
    """Compresses uint8 RGB [H,W,3] as MPEG-4 video, every frame by itself."""
    import av

    codec: Any = av.CodecContext.create("mpeg4", "w")
    images = [av.VideoFrame.from_ndarray(rgb, format="rgb24") for rgb in frames]
    codec.width, codec.height, codec.pix_fmt = images[0].width, images[0].height, "yuv420p"
    codec.framerate, codec.gop_size, codec.bit_rate = _RATE, 1, 2_000_000
    packets = [packet for image in [*images, None] for packet in codec.encode(image)]
    return [bytes(packet) for packet in packets]


@contextmanager
def camera(packets: list[bytes], path: str = "/cam") -> Iterator[str]:
    """Serves the packets from the first to the last, then hangs up; gives the address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                link, _ = listener.accept()
            except OSError:  # it was closed
                return
            with link:
                try:
                    _talk(link, packets)
                except (OSError, EOFError):
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"rtsp://127.0.0.1:{listener.getsockname()[1]}{path}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def _talk(link: socket.socket, packets: list[bytes]) -> None:
    """Answers requests until it is asked to play, and plays."""
    stream = link.makefile("rb")
    while True:
        lines = []
        while (line := stream.readline()) not in (b"\r\n", b"\n"):
            if not line:
                raise EOFError
            lines.append(line.decode().strip())
        method, url = lines[0].split()[:2]
        headers = dict(line.split(": ", 1) for line in lines[1:])
        answer = [f"CSeq: {headers['CSeq']}", "Session: 1"]
        body = ""
        if method == "OPTIONS":
            answer.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
        elif method == "DESCRIBE":
            body = _SDP
            answer += ["Content-Type: application/sdp", f"Content-Base: {url}/"]
        elif method == "SETUP":
            answer.append(f"Transport: {headers['Transport'].split(',')[0]}")
        head = "\r\n".join(["RTSP/1.0 200 OK", *answer, f"Content-Length: {len(body)}", "", ""])
        link.sendall((head + body).encode())
        if method == "PLAY":
            for data in _rtp(packets):
                link.sendall(b"$\x00" + struct.pack(">H", len(data)) + data)
            return


def _rtp(packets: list[bytes]) -> Iterator[bytes]:
    """Cuts frames into packets, of which the last of each frame is marked."""
    sequence = 0
    for number, packet in enumerate(packets):
        parts = [packet[n : n + _PART_BYTES] for n in range(0, len(packet), _PART_BYTES)]
        for part in parts:
            mark = 0x80 if part is parts[-1] else 0
            when = number * _CLOCK // _RATE
            yield struct.pack(">BBHII", 0x80, 96 | mark, sequence & 0xFFFF, when, 7) + part
            sequence += 1
