"""Decodes in processes that hold nothing worth having, so that a hostile file costs one request.

A file goes to a worker, and its pixels come back, through memory that both have mapped. A worker
that ends or works far too long is killed and replaced. A file that costs two workers in this way,
or much time, is answered with InvalidImage. docs/security.md tells what a worker may do.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import numpy as np

from service.config import SegmenterConfig
from service.core.images.decode import Size, decode_reduced, reduced
from service.core.images.header import Header
from service.core.images.protocol import ERRORS, MAX_TEXT, READY, REPLY, REQUEST, WANTED
from service.core.types import UInt8Array
from service.errors import InvalidImage, ShuttingDown

_log = logging.getLogger(__name__)

_START_S: Final = 60.0
_LEAST_S, _S_PER_PIXEL = 3.0, 0.5e-6
"""Seconds of a processor that a decode may take. The slowest files that are read need a quarter of
it: run lengths 0.2 s for a million pixels, 40 scans 0.1 s (bench/LOG.md)."""
_PATIENCE = 6.0
"""How many times as long a decode may last that is kept from a processor, by others or for ever."""
_LEAST_WAIT_S: Final = 0.02
"""Seconds between two looks at a decode that is about to have used up its time."""
_FIRST_BYTES, _WORKER_BYTES = 35 << 20, 15 << 20
"""Bytes of the process that workers are forked from, and of each beside it: its own pages and
what it keeps of the shared memory."""
_KEPT_BYTES: Final = 8 << 20
"""Shared memory that a worker keeps for the next image; more is given back."""
_KEPT_VARIABLES: Final = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "PYTHONHOME", "PYTHONPATH")
_ROOT: Final = str(Path(__file__).parents[3])

Decode = Callable[[bytes, Header, int], tuple[UInt8Array, Size]]
"""Makes upright RGB of a file, as `service.core.images.decode.decode_reduced`."""
Lost = Callable[[str], None]
"""Is told why a worker was lost: "crash" or "hang"."""


class Decoder:
    """Decodes for one segmenter: in as many processes as it has threads for it, or in those."""

    def __init__(self, config: SegmenterConfig, workers: int, lost: Lost) -> None:
        """Starts the process that workers are forked from, if there are to be any."""
        self.decode: Decode = partial(decode_reduced, max_pixels=config.max_image_pixels)
        self._workers = workers if config.decode == "processes" else 0
        self._max_pixels = config.max_image_pixels
        self._lost = lost
        body_bytes = config.max_image_bytes + -config.max_image_bytes % mmap.PAGESIZE
        self._room = body_bytes, 3 * config.max_image_pixels
        self._free: SimpleQueue[_Worker | None] = SimpleQueue()
        self._starting = threading.Lock()
        self._closed = False
        self._control: socket.socket | None = None

    @property
    def memory_bytes(self) -> int:
        """Returns what the processes take while they decode nothing."""
        return _FIRST_BYTES + _WORKER_BYTES * self._workers if self._workers else 0

    def start(self) -> None:
        """Makes the workers; where the system does not allow them, threads decode."""
        if not self._workers:
            return
        try:
            for _ in range(self._workers):
                self._free.put(self._new_worker())
        except (OSError, AttributeError) as error:  # not Linux: no memfd_create
            _log.warning("images are decoded in threads, as processes failed: %s", error)
            self.close()
        else:
            self.decode = self._decode

    def _decode(self, body: bytes, header: Header, reduction: int) -> tuple[UInt8Array, Size]:
        """Decodes in a worker; called on a thread of the pool."""
        worker = self._free.get()
        try:
            for last in (False, True):
                try:
                    given, worker = worker, None  # which is ended where it cannot be asked
                    worker = self._asked(given, body, header, reduction)
                    return worker.answer(header, reduction)
                except (OSError, _Untrue) as error:
                    if worker is not None:
                        worker.kill()
                        worker = None
                    self._failed(body, header, error, last)
            raise AssertionError  # the last time raises
        finally:
            self._free.put(worker)

    def _failed(self, body: bytes, header: Header, error: Exception, last: bool) -> None:
        """Counts the loss of a worker. One that ended is tried once more, for a kernel short of
        memory ends workers, too, and the file may be good; of one that hangs once is enough.

        Raises: InvalidImage, ShuttingDown.
        """
        if self._closed:
            raise ShuttingDown() from error
        why = "hang" if isinstance(error, TimeoutError) else "crash"
        self._lost(why)
        _log.warning(
            "a %s file of %d bytes cost its decode worker (%s): %s",
            header.format, len(body), why, error,
        )  # fmt: skip
        if last or why == "hang":
            raise InvalidImage(
                f"the {header.format} file could not be decoded: the process that read it "
                f"{'took too long' if why == 'hang' else 'ended'}; save the image anew"
            ) from error

    def _asked(
        self, worker: _Worker | None, body: bytes, header: Header, reduction: int
    ) -> _Worker:
        """Gives the file to a worker: this one, or a new one if it ended before. Raises OSError."""
        if worker is not None:
            try:
                worker.ask(body, header, self._max_pixels, reduction)
                return worker
            except OSError:
                worker.kill()
        worker = self._new_worker()
        try:
            worker.ask(body, header, self._max_pixels, reduction)
        except OSError:
            worker.kill()
            raise
        return worker

    def close(self) -> None:
        """Ends the processes; a decode that is under way fails."""
        self._closed = True
        with self._starting:
            self._end()
        while not self._free.empty():
            if (worker := self._free.get()) is not None:
                worker.close()

    def _new_worker(self) -> _Worker:
        """Raises OSError."""
        with self._starting:
            for _ in range(2):
                if self._closed:
                    break
                try:
                    return _Worker(self._first(), *self._room)
                except OSError as error:
                    _log.warning("the process that decode workers come from is lost: %s", error)
                    self._end()
        raise OSError("it does not start")

    def _first(self) -> socket.socket:
        """Returns the socket of the process that workers are forked from. Raises OSError."""
        if self._control is not None:
            return self._control
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        paths = [_ROOT, *filter(None, [kept.get("PYTHONPATH")])]
        with theirs:
            # Nothing of this process goes along: no descriptor, no key in a variable.
            self._process = subprocess.Popen(  # nosec B603  # of our own words
                [sys.executable, "-m", "service.core.images.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libtiff and others write there
                env=kept | {"PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
            )
        self._control.settimeout(_START_S)
        message = self._control.recv(MAX_TEXT)
        if not message:
            raise OSError("it did not start")
        if message != READY:
            _log.warning("decode workers are confined without %s", message.decode())
        return self._control

    def _end(self) -> None:
        """Ends the process that workers are forked from, and with it all of them."""
        if self._control is not None:
            self._control.close()
            self._control = None
            self._process.kill()
            self._process.wait()


class _Untrue(Exception):
    """Says that a worker's answer is none."""


class _Worker:
    """Is one process that decodes, and the memory shared with it."""

    def __init__(self, control: socket.socket, body_bytes: int, pixel_bytes: int) -> None:
        """Raises OSError."""
        self._pixels_at = body_bytes
        self._parent = control
        shared = os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            os.ftruncate(shared, body_bytes + pixel_bytes)
            # Or a worker could cut off the memory that this process reads.
            fcntl.fcntl(shared, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self._region = mmap.mmap(shared, body_bytes + pixel_bytes)
            message = WANTED.pack(body_bytes, pixel_bytes)
            socket.send_fds(control, [message], [theirs.fileno(), shared])
            text, (self._handle,), _, _ = socket.recv_fds(control, MAX_TEXT, 1)
            self.pid = int(text)
        except (OSError, ValueError) as error:
            self._socket.close()
            raise OSError("it is gone") from error
        finally:
            theirs.close()
            os.close(shared)

    def ask(self, body: bytes, header: Header, max_pixels: int, reduction: int) -> None:
        """Hands the file over. Raises OSError when the process is gone."""
        self._limit_s = _LEAST_S + _S_PER_PIXEL * header.pixels
        self._used_before_s = _processor_s(self.pid)
        self._socket.settimeout(self._limit_s)
        self._region[: len(body)] = body
        self._socket.send(REQUEST.pack(len(body), max_pixels, reduction))

    def answer(self, header: Header, reduction: int) -> tuple[UInt8Array, Size]:
        """Waits for the pixels, and the size of the whole image. Raises OSError when the process is
        gone, TimeoutError when it takes too long, and what it says is wrong with the file."""
        reply = self._reply()
        if len(reply) < REPLY.size:
            raise OSError("it ended")
        error, height, width = REPLY.unpack_from(reply)
        if error:
            if error > len(ERRORS):
                raise _Untrue("its answer is none")
            raise ERRORS[error - 1](reply[REPLY.size :].decode(errors="replace"))
        if sorted((height, width)) != sorted((header.height, header.width)):
            raise _Untrue("its answer is of another size")
        shape = (*reduced(height, width, reduction), 3)
        rgb = np.ndarray(shape, np.uint8, self._region, self._pixels_at).copy()
        if (rgb.nbytes if header.plain else 3 * header.pixels) > _KEPT_BYTES:
            self._region.madvise(mmap.MADV_REMOVE)
        rgb.flags.writeable = False
        return rgb, (height, width)

    def _reply(self) -> bytes:
        """Waits for as long as the process may work. Raises OSError, TimeoutError.

        A machine that has no processor to spare makes no file a hostile one, so what counts is
        the time that the process itself has had, as far as the system tells it.
        """
        waited_s, wait_s = 0.0, self._limit_s
        while True:
            self._socket.settimeout(wait_s)
            try:
                return self._socket.recv(REPLY.size + MAX_TEXT)
            except TimeoutError:
                # Not by the clock: that runs on while this process is stopped, too.
                waited_s += wait_s
                used_s = _processor_s(self.pid)
                if used_s is None or self._used_before_s is None:
                    raise
                if self._parent.fileno() < 0:  # closed: it does not live on, or should not
                    raise
                left_s = self._limit_s - (used_s - self._used_before_s)
                if left_s <= 0 or waited_s >= _PATIENCE * self._limit_s:
                    raise
                wait_s = max(left_s, _LEAST_WAIT_S)

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """Hangs up, upon which the process ends."""
        self._socket.close()
        os.close(self._handle)


def _processor_s(pid: int) -> float | None:
    """Returns the seconds of a processor that a process has had, or None where /proc tells none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:  # not mounted, hidden, or no descriptor is free
        return None
    fields = stat.rsplit(b")", 1)[1].split()  # behind the name, which may hold anything
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
