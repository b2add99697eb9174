"""Starts a server as a process of its own, asks it, and ends it with all that it started."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
READY_S = 60.0
STOP_S = 20.0
OWN_DEADLINE_MS = 450
"""Our server is told this under overload: a client's 0.5 s less the way there and back."""
_AT_ONCE_S = 0.5
_SETTLE_S = 15.0
_MARK = "BENCH_RUN"
"""Environment variable by which every process of a server is found, whoever its parent is now."""
_PNG = b"\x89PNG\r\n\x1a\n"


class CannotRun(Exception):
    """Says why a server does not install, start or answer."""


@dataclass(frozen=True, slots=True)
class Command:
    """Says how a server is started and asked. `headers`: whole lines, beside Content-Type."""

    words: Sequence[str]
    folder: Path
    url: str
    grpc: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "image/jpeg"
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Running:
    """Holds a server that has answered `png`. `start_s`: from its start until then."""

    command: Command
    png: bytes
    start_s: float
    mark: str

    @property
    def url(self) -> str:
        return self.command.url

    def memory_mib(self) -> float:
        """Sums the proportional set sizes of all processes: shared pages are divided among them."""
        return _mib(self.mark, "smaps_rollup", "Pss:")

    def resident_mib(self) -> float:
        return _mib(self.mark, "status", "VmRSS:")

    def cpu_s(self) -> float:
        """Sums what all processes have computed, in user and system."""
        ticks = 0
        for pid in processes(self.mark):
            with contextlib.suppress(OSError):  # gone meanwhile
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def most_resident_mib(self) -> float:
        """Sums the largest resident sizes so far."""
        return _mib(self.mark, "status", "VmHWM:")


def fcn_serve(
    checkout: Path, model: Path, precision: str = "auto", flags: Sequence[str] = ()
) -> Command:
    """Starts a checkout's `fcn serve` on free ports. model: `<repository>/<name>/<version>/*`."""
    port = free_port()
    words = [sys.executable, "-m", "cli.main", "serve", f"--http-port={port}"]
    words += [f"--grpc-port={port + 1}", f"--model-repository={model.resolve().parents[2]}"]
    words += [f"--default-model={model.resolve().parents[1].name}", f"--precision={precision}"]
    return Command(
        [*words, "--log-level=warning", *flags],
        checkout,
        f"http://127.0.0.1:{port}/segment",
        grpc=f"grpc://127.0.0.1:{port + 1}",
        environment={"PYTHONPATH": str(checkout)},
    )


@contextmanager
def running(command: Command, image: bytes, *, ready_s: float = READY_S) -> Iterator[Running]:
    """Serves during the block; at its end the server is gone with all its processes.

    Raises: CannotRun with the last words of the server's log.
    """
    mark = uuid.uuid4().hex
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FCN_", "BENCH_", "OMP_"))}
    quiet = {"ORT_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", _MARK: mark}
    with tempfile.TemporaryFile("w+") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            command.words,
            cwd=command.folder,
            env={**kept, **quiet, **command.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            png = _first_answer(command, image, process, ready_s)
            yield Running(command, png, round(time.perf_counter() - began, 2), mark)
        except CannotRun as error:
            log.seek(0)
            raise CannotRun(f"{error}; its log ends: {last_line(log.read())}") from error
        finally:
            _stop(process, mark)


def ask(command: Command, image: bytes, timeout_s: float = 30.0) -> bytes:
    """Gives the PNG of one answer. Raises: OSError, http.client.HTTPException, ValueError."""
    where = urlsplit(command.url)
    connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=timeout_s)
    headers = {"Content-Type": command.content_type}
    headers |= dict(line.split(": ", 1) for line in command.headers)
    try:
        connection.request("POST", where.path, image, headers)
        reply = connection.getresponse()
        content = reply.read()
    finally:
        connection.close()
    start = content.find(_PNG)  # a Triton reply has its JSON head before it
    if reply.status != 200 or start < 0:
        raise ValueError(f"answers {reply.status}: {content[:200]!r}")
    return content[start:]


def settle(command: Command, image: bytes) -> float:
    """Waits until one request is answered within 0.5 s again; gives the seconds, 15 at most."""
    began = time.perf_counter()
    while (waited := time.perf_counter() - began) < _SETTLE_S:
        asked = time.perf_counter()
        try:
            ask(command, image, _SETTLE_S)
        except (OSError, ValueError, http.client.HTTPException):
            time.sleep(0.02)
            continue
        if time.perf_counter() - asked < _AT_ONCE_S:
            break
    return round(waited, 2)


def processes(mark: str) -> list[int]:
    """Finds the processes started, however indirectly, with this mark in their environment."""
    found = []
    wanted = f"{_MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # gone meanwhile, or somebody else's
            continue
    return found


def free_port() -> int:
    """Gives the first of three free neighbours: some servers want more than one port."""
    for _ in range(100):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port + 2 < 65536 and all(_is_free(port + step) for step in range(3)):
            return port
    raise CannotRun("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _first_answer(
    command: Command, image: bytes, process: subprocess.Popen[bytes], ready_s: float
) -> bytes:
    until = time.monotonic() + ready_s
    said = "no connection"
    while time.monotonic() < until:
        if process.poll() is not None:
            raise CannotRun(f"does not start: exit code {process.returncode}")
        try:
            return ask(command, image)
        except (OSError, http.client.HTTPException, ValueError) as error:
            said = str(error)
        time.sleep(0.02)
    raise CannotRun(f"is not ready after {ready_s:.0f} s: {said}")


def _stop(process: subprocess.Popen[bytes], mark: str) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    # What the server left behind, workers of a dead parent for instance.
    for pid in processes(mark):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _mib(mark: str, file: str, name: str) -> float:
    """Sums one figure of /proc over the processes of a server."""
    kib = 0
    for pid in processes(mark):
        try:
            text = Path(f"/proc/{pid}/{file}").read_text()
        except OSError:  # gone meanwhile
            continue
        kib += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(name))
    return round(kib / 1024, 1)


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing"
