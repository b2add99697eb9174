"""Decodes in real processes that crash, hang, run out of memory or are killed."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from service.config import SegmenterConfig
from service.core.images import processes
from service.core.images.decode import decode
from service.core.images.header import read_header
from service.core.images.processes import Decoder
from service.errors import ImageTooLarge, InvalidImage, ServiceError, ShuttingDown
from tests.drawing import UInt8Array, encode, street
from tests.unit.core import test_decode_cost as files
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
CONFIG = SegmenterConfig(decode="processes", max_image_pixels=4_000_000)
JPEG = encode(street(40, 56), "JPEG")


@contextmanager
def decoding(workers: int = 1) -> Iterator[tuple[Decoder, list[str]]]:
    """Yields a decoder, and why it lost workers."""
    lost: list[str] = []
    decoder = Decoder(CONFIG, workers, lost.append)
    decoder.start()
    try:
        assert decoder.decode == decoder._decode, "in processes"
        yield decoder, lost
    finally:
        decoder.close()


def read(decoder: Decoder, body: bytes) -> UInt8Array:
    return decoder.decode(body, read_header(body, max_bytes=1 << 26), 1)[0]


def here(body: bytes) -> UInt8Array:
    return decode(body, read_header(body, max_bytes=1 << 26), max_pixels=4_000_000)


def pid(decoder: Decoder) -> int:
    """Finds the process of the only worker, idle or not."""
    children = Path(f"/proc/{decoder._process.pid}/task/{decoder._process.pid}/children")
    return int(children.read_text().split()[-1])


def gone(number: int) -> bool:
    """Tells whether a process ended, buried or not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(") ", 1)[1][0] in "ZX"
    except OSError:
        return True


def stop(number: int) -> None:
    """Stops a process, and returns when it does nothing more."""
    os.kill(number, signal.SIGSTOP)
    until(lambda: Path(f"/proc/{number}/stat").read_text().rsplit(") ", 1)[1][0] == "T")


def unread(worker: processes._Worker | None) -> bool:
    """Tells whether a worker was asked, and has not begun to read."""
    assert worker is not None
    waiting = fcntl.ioctl(worker._socket, termios.TIOCOUTQ, bytes(4))
    return waiting != bytes(4)


def confined(number: int) -> bool:
    """Tells whether a worker has given up what it need not have, the last of it new files."""
    limits = Path(f"/proc/{number}/limits").read_text()
    return re.search(r"^Max open files +0 ", limits, re.M) is not None


def test_every_kind_has_the_pixels_that_it_has_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SIDE", 400)
    with decoding() as (decoder, lost):
        for kind, write in files.KINDS.items():
            body = write()
            rgb = read(decoder, body)
            assert (rgb == here(body)).all(), kind
            assert not rgb.flags.writeable
        assert lost == []


def test_what_is_wrong_with_a_file_is_said_as_in_a_thread() -> None:
    with decoding() as (decoder, lost):
        for body in (JPEG[:-2], encode(street(40, 56), "PNG")[:900], b"BM" + bytes(60)):
            with pytest.raises(ServiceError) as there:
                read(decoder, body)
            with pytest.raises(ServiceError) as in_thread:
                here(body)
            assert (type(there.value), str(there.value)) == (
                type(in_thread.value), str(in_thread.value)
            )  # fmt: skip
        assert lost == []


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_worker_that_is_killed_in_the_middle_costs_nobody_an_answer(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_LEAST_S", 60.0)  # a busy machine is no hang
    with decoding() as (decoder, lost), ThreadPoolExecutor() as pool:
        before = pid(decoder)
        decoder._free.put(worker := decoder._free.get())
        stop(before)
        answer = pool.submit(read, decoder, JPEG)
        until(lambda: unread(worker))
        os.kill(before, number)
        os.kill(before, signal.SIGCONT)
        assert (answer.result(20) == here(JPEG)).all()
        assert lost == ["crash"]


def test_a_worker_that_ended_while_it_was_idle_costs_nothing() -> None:
    with decoding() as (decoder, lost):
        for which in (pid, lambda decoder: decoder._process.pid):
            worker = pid(decoder)
            os.kill(which(decoder), signal.SIGKILL)
            until(lambda worker=worker: gone(worker))  # type: ignore[misc]
            assert (read(decoder, JPEG) == here(JPEG)).all()
        assert lost == []


def test_a_worker_that_cannot_be_replaced_is_missed_by_its_request_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No process, memory or descriptor may be free; the next request tries again."""

    def none_is_free(*_: object) -> None:
        raise OSError("no descriptor is free")

    with decoding() as (decoder, lost):
        worker = pid(decoder)
        os.kill(worker, signal.SIGKILL)
        until(lambda: gone(worker))
        with monkeypatch.context() as patch:
            patch.setattr(decoder, "_new_worker", none_is_free)
            with pytest.raises(InvalidImage, match="ended"):
                read(decoder, JPEG)
        assert lost == ["crash", "crash"]
        assert (read(decoder, JPEG) == here(JPEG)).all()
        with monkeypatch.context() as patch:
            patch.setattr(processes._Worker, "ask", none_is_free)
            with pytest.raises(InvalidImage, match="ended"):
                read(decoder, JPEG)
        assert lost == ["crash"] * 4
        assert (read(decoder, JPEG) == here(JPEG)).all()


def test_more_memory_than_the_header_says_is_not_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb of memory is the request's own: the worker says so, and lives."""
    side = 2000
    body = encode(Image.new("RGB", (side, side)), "PNG")
    # Its header counts nothing, as one would that our parser and the decoder read differently.
    less = (
        "service.core.images.header._MANY = -3; service.core.images.worker._SPARE_BYTES = 4 << 20; "
    )
    changed_workers(monkeypatch, less)
    with decoding() as (decoder, lost):
        before = pid(decoder)
        with pytest.raises(ImageTooLarge, match="does not fit in memory"):
            read(decoder, body)
        assert (read(decoder, JPEG) == here(JPEG)).all()
        assert pid(decoder) == before
        assert lost == []


def changed_workers(monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """Starts workers that run something before they begin."""
    start = subprocess.Popen

    def popen(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        code = (
            "import socket, sys, service.core.images.header, service.core.images.worker; "
            f"{first}service.core.images.worker.main(socket.socket(fileno=int(sys.argv[1])))"
        )
        return start([sys.executable, "-c", code, command[-1]], **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(subprocess, "Popen", popen)


def test_under_load_a_killed_worker_fails_no_request() -> None:
    bodies = [encode(street(300, 400, seed=n), "PNG") for n in range(4)]
    wanted = [here(body) for body in bodies]
    with decoding(workers=2) as (decoder, lost), ThreadPoolExecutor(2) as pool:
        stop, failed, answered = threading.Event(), list[Exception](), list[bool]()

        def load() -> None:
            n = 0
            while not stop.is_set():
                n += 1
                try:
                    answered.append(bool((read(decoder, bodies[n % 4]) == wanted[n % 4]).all()))
                except ServiceError as error:
                    failed.append(error)

        threads = [pool.submit(load) for _ in range(2)]
        until(lambda: len(answered) > 20)
        os.kill(pid(decoder), signal.SIGKILL)
        n = len(answered)
        until(lambda: len(answered) > n + 40)
        stop.set()
        for thread in threads:
            thread.result(20)
    assert all(answered)
    assert failed == []
    assert len(lost) <= 1, "none, where it was idle"


def test_a_worker_holds_nothing_worth_having(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCN_ADMIN_KEY", "the key to everything")
    with decoding() as (decoder, _), open(__file__):
        read(decoder, JPEG)
        proc = Path(f"/proc/{pid(decoder)}")
        assert b"the key to everything" not in (proc / "environ").read_bytes()
        links = [os.readlink(fd) for fd in (proc / "fd").iterdir()]
        assert all(link.startswith(("/dev/null", "socket:", "/memfd:image")) for link in links)
        status = dict(
            line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line
        )
        assert status["NoNewPrivs"].strip() == "1"
        assert int(status["CapEff"], 16) == 0
        if platform.machine() in ("x86_64", "aarch64"):
            assert status["Seccomp"].strip() == "2", "a filter"
        assert [line for line in (proc / "limits").read_text().splitlines()
                if line.startswith(("Max open files", "Max processes", "Max file size"))
                and line.split()[-3:-1] != ["0", "0"]] == []  # fmt: skip
        assert (proc / "oom_score_adj").read_text().strip() == "1000"


def test_what_decoding_never_asks_for_is_refused_and_ends_nothing() -> None:
    """Files, also for reading, network, other programs, other processes."""
    code = (
        "import ctypes, os, socket\n"
        "from service.core.images import sandbox\n"
        "libc, pair = ctypes.CDLL(None, use_errno=True), socket.socketpair()\n"
        "wanted = [lambda: os.open('/dev/null', os.O_RDONLY), lambda: os.open('x', os.O_CREAT),\n"
        "    socket.socket, lambda: socket.socketpair(), lambda: pair[0].bind('x'),\n"
        "    lambda: os.execv('/bin/true', ['true'])]\n"
        "libc.prctl(sandbox._PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)\n"
        "assert sandbox._seccomp()\n"
        "for ask in wanted:\n"
        "    try: ask()\n"
        "    except PermissionError: print('refused')\n"
        "assert libc.ptrace(0, 0, 0, 0) == -1\n"
        "pair[0].send(b'.'), pair[1].recv(1), os.waitpid(os.fork() or os._exit(0), 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == (["refused"] * 6, "")


def test_nothing_stays_behind_when_the_server_is_killed() -> None:
    code = (
        "import sys, time\n"
        "from service.config import SegmenterConfig\n"
        "from service.core.images.processes import Decoder\n"
        "decoder = Decoder(SegmenterConfig(decode='processes'), 2, print)\n"
        "decoder.start()\n"
        "print(decoder._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    with server:
        first = int(server.stdout.readline())
        children = Path(f"/proc/{first}/task/{first}/children")
        until(lambda: len(children.read_text().split()) == 2)
        workers = [int(n) for n in children.read_text().split()]
        until(lambda: all(confined(number) for number in workers))  # which its end is a part of
        stop(workers[0])  # as one that hangs
        server.kill()
    until(lambda: all(gone(number) for number in (first, *workers)))


def test_a_decode_at_the_end_is_told_so() -> None:
    with decoding() as (decoder, lost), ThreadPoolExecutor() as pool:
        until(lambda: confined(pid(decoder)))
        stop(pid(decoder))
        answer = pool.submit(read, decoder, JPEG)
        until(decoder._free.empty)
        decoder.close()
        with pytest.raises(ShuttingDown):
            answer.result(20)
        assert lost == []


def test_where_processes_do_not_start_threads_decode(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    decoder = Decoder(CONFIG, 1, print)
    decoder.start()
    assert (read(decoder, JPEG) == here(JPEG)).all()
    assert "images are decoded in threads" in caplog.text
    decoder.close()


def test_an_answer_that_is_none_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    for first in (
        "service.core.images.worker.decode_reduced = lambda *a, **o: (0, (9, 9)); ",
        "service.core.images.worker.ERRORS = (0,) * 70 + service.core.images.worker.ERRORS; ",
    ):
        with monkeypatch.context() as patch:
            unready = "service.core.images.worker._decode_one_of_each = lambda: 0; "
            changed_workers(patch, unready + first)
            with decoding() as (decoder, lost):
                with pytest.raises(InvalidImage, match="the process that read it ended"):
                    read(decoder, JPEG if "zeros" in first else JPEG[:-2])
                assert lost == ["crash", "crash"]


def test_shared_memory_of_a_large_image_is_given_back() -> None:
    with decoding() as (decoder, _):
        read(decoder, encode(Image.new("RGB", (1990, 2000)), "PNG"))
        lines = Path(f"/proc/{pid(decoder)}/smaps_rollup").read_text().splitlines()
        pss = next(int(line.split()[1]) for line in lines if line.startswith("Pss_Shmem"))
        assert pss < 1000, "kB, of 12 MB"
