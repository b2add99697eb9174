"""Decodes in processes that hold nothing but one file and its pixels: the side of these processes.

The first one imports the decoders, gives up its rights and waits; for each worker that the server
wants it forks, in milliseconds. `service.core.images.processes` is the server's side.

Run as `python -m service.core.images.worker SOCKET`.
"""

from __future__ import annotations

import gc
import io
import mmap
import os
import signal
import socket
import sys
from typing import Any, Final

import numpy as np
from PIL import Image

from service.core.images.decode import decode, decode_reduced
from service.core.images.header import read_header
from service.core.images.protocol import ERRORS, MAX_TEXT, READY, REPLY, REQUEST, WANTED
from service.core.images.sandbox import (
    address_space_bytes,
    confine,
    confine_worker,
    limit_address_space,
)
from service.errors import ImageTooLarge, InvalidImage, UnsupportedImageFormat

_NICE: Final = 2
"""How far workers stand back behind the event loop; as the threads of the pool, whose work this
is."""
_SPARE_BYTES: Final = 64 << 20
"""Address space beyond what the header says: of the allocator, and of what it keeps."""
_KINDS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("BMP", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
)  # fmt: skip


def main(control: socket.socket) -> None:
    """Serves the server's wishes for workers until it is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the server, which drains first
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICE)
    _decode_one_of_each()
    mapped = address_space_bytes()
    missing = confine()
    gc.freeze()  # or collections would copy what is shared with the workers
    control.send(",".join(missing).encode() or READY)
    while True:
        message, fds, _, _ = socket.recv_fds(control, WANTED.size, 2)
        if len(message) < WANTED.size:
            return
        pid = os.fork()
        if not pid:
            control.close()
            _work(socket.socket(fileno=fds[0]), fds[1], mapped, *WANTED.unpack(message))
        for fd in fds:
            os.close(fd)
        handle = os.pidfd_open(pid)
        socket.send_fds(control, [str(pid).encode()], [handle])
        os.close(handle)
        while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG):
            pass  # those that ended before


def _decode_one_of_each() -> None:
    """Makes the decoders import what they import late: afterwards there are no files."""
    for kind, options in _KINDS:
        body = io.BytesIO()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(body, kind, **options)
        decode(body.getvalue(), read_header(body.getvalue(), max_bytes=1 << 20), max_pixels=64)


def _work(peer: socket.socket, shared: int, mapped: int, body_bytes: int, pixel_bytes: int) -> None:
    """Decodes one file after the other until the server hangs up; never returns."""
    region = memoryview(mmap.mmap(shared, body_bytes + pixel_bytes))
    confine_worker()
    mapped += body_bytes + pixel_bytes + _SPARE_BYTES
    while message := peer.recv(REQUEST.size):
        n_bytes, max_pixels, reduction = REQUEST.unpack(message)
        body = bytes(region[:n_bytes])
        try:
            header = read_header(body, max_bytes=n_bytes)
            limit_address_space(mapped + header.decode_bytes)
            room = region[body_bytes:]
            size = decode_reduced(body, header, reduction, max_pixels=max_pixels, buffer=room)[1]
            reply = REPLY.pack(0, *size)
        except (InvalidImage, UnsupportedImageFormat, ImageTooLarge) as error:
            text = str(error).encode()[:MAX_TEXT]
            reply = REPLY.pack(1 + ERRORS.index(type(error)), 0, 0) + text
        del body
        peer.send(reply)
    os._exit(0)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
