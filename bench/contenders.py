"""The servers that are compared: ours as `fcn serve` starts it, and the peers in their own venvs.

A peer is a folder of bench/peers/: `server.py`, and `requirements.txt` for its environment, which
`install` makes under a folder that git ignores.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from service.core.engines.choice import INT8_FILE

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(__file__).parent / "peers"
CACHE = ROOT / "build" / "peers"
READY_S = 60.0
STOP_S = 20.0
_MARK = "BENCH_RUN"
"""Environment variable by which every process of a server is found, whoever its parent is now."""
_PNG = b"\x89PNG\r\n\x1a\n"


class CannotRun(Exception):
    """A peer that does not install, start or answer; the message says why."""


@dataclass(frozen=True, slots=True)
class Variant:
    """How a peer shares out the cores: processes or instances, threads of one inference, batch."""

    workers: int
    threads: int
    batch: int = 1

    def __str__(self) -> str:
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        return f"{self.workers} x {self.threads} thread{'s'[: self.threads > 1]}{batch}"


@dataclass(frozen=True, slots=True)
class Contender:
    """`overload`: what bounds the work inside it under overload, in words; "" if nothing does."""

    name: str
    title: str
    package: str
    overload: str = ""
    path: str = "/segment"
    headers: tuple[str, ...] = ()
    content_type: str = "image/jpeg"
    batches: bool = False
    module: tuple[str, ...] = ("server.py",)
    environment: tuple[tuple[str, str], ...] = ()
    own_venv: bool = True

    def variants(self, cores: int) -> tuple[Variant, ...]:
        """One worker with every core, a worker for each core, and, where it batches, a batch."""
        found = (Variant(1, cores), Variant(cores, 1))
        return (*found, Variant(1, cores, 4)) if self.batches else found

    @property
    def python(self) -> Path:
        return CACHE / self.name / "bin" / "python" if self.own_venv else Path(sys.executable)

    @property
    def requirements(self) -> Path:
        return PEERS / self.name / "requirements.txt"

    def url(self, port: int) -> str:
        return f"http://127.0.0.1:{port}{self.path}"


PEER_LIST = (
    Contender(
        "fastapi",
        "plain FastAPI",
        "fastapi",
        overload="uvicorn --limit-concurrency",
        own_venv=False,
    ),
    Contender(
        "litserve",
        "LitServe",
        "litserve",
        overload="timeout of 0.5 s, seen to when a request's turn comes",
        batches=True,
    ),
    Contender(
        "bentoml",
        "BentoML",
        "bentoml",
        overload="traffic max_concurrency",
        batches=True,
        module=("-m", "bentoml", "serve", "server:Segment"),
        environment=(("BENTOML_DO_NOT_TRACK", "True"), ("BENTOML_HOST", "127.0.0.1")),
    ),
    Contender("mlserver", "MLServer", "mlserver"),
    Contender(
        "ray_serve",
        "Ray Serve",
        "ray",
        overload="max_queued_requests",
        batches=True,
        environment=(("RAY_USAGE_STATS_ENABLED", "0"),),
    ),
    Contender(
        "pytriton",
        "PyTriton",
        "nvidia-pytriton",
        overload="max_queue_size and a queue timeout of 0.4 s",
        path="/v2/models/segment/infer",
        headers=("Inference-Header-Content-Length: 0",),
        content_type="application/octet-stream",
        batches=True,
        # Triton's Python backend brings no libpython: it must be the one of this interpreter.
        environment=(("LD_LIBRARY_PATH", str(sysconfig.get_config_var("LIBDIR"))),),
    ),
)
OURS = Contender("fcn", "FCN Serve", "fcn-serve", overload="deadline_ms=450", own_venv=False)
LIMIT = "limit"
CONTENDERS = {each.name: each for each in (OURS, *PEER_LIST)}


def install(contender: Contender) -> None:
    """Its virtual environment, once for each state of its requirements. Raises: CannotRun."""
    if not contender.own_venv:
        return
    folder = CACHE / contender.name
    stamp = folder / "requirements.txt"
    if stamp.exists() and stamp.read_text() == contender.requirements.read_text():
        return
    print(f"{contender.title}: installing into {folder}", flush=True)
    steps = (
        [sys.executable, "-m", "venv", str(folder)],
        [str(contender.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        + ["--no-input", "-r", str(contender.requirements)],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotRun(f"does not install: {_last_line(done.stderr or done.stdout)}")
    shutil.copy(contender.requirements, stamp)


def version(contender: Contender) -> str:
    code = f"import importlib.metadata as m; print(m.version({contender.package!r}))"
    done = subprocess.run(
        [str(contender.python), "-c", code], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


@dataclass(frozen=True, slots=True)
class Running:
    """A server that has answered. `png`: what it answered. `start_s`: from its start until then."""

    contender: Contender
    url: str
    png: bytes
    start_s: float
    mark: str

    def memory_mib(self) -> float:
        """Proportional set size of all its processes: shared pages are divided among them."""
        return round(sum(_pss_kib(pid) for pid in processes(self.mark)) / 1024, 1)


@contextmanager
def running(
    contender: Contender, variant: Variant, model: Path, picture: bytes, *, limit: int = 0
) -> Iterator[Running]:
    """A server on free ports, gone with all its processes at the end of the block.

    model: `<repository>/<name>/<version>/model.onnx`. limit: see bench/peers/picture.py; ours takes
    none, it has one configuration. Raises: CannotRun.
    """
    mark = uuid.uuid4().hex
    scratch = Path(tempfile.mkdtemp(prefix="bench-"))
    port = free_port()
    with (scratch / "log").open("w+") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            _command(contender, port, model),
            cwd=_working_folder(contender, scratch),
            env=_environment(contender, variant, model, port, limit, scratch, mark),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            url = contender.url(port)
            png = _first_answer(contender, url, picture, process)
            yield Running(contender, url, png, round(time.perf_counter() - began, 2), mark)
        except CannotRun as error:
            log.seek(0)
            raise CannotRun(f"{error}; its log ends: {_last_line(log.read())}") from error
        finally:
            _stop(process, mark)
            shutil.rmtree(scratch, ignore_errors=True)


def ask(contender: Contender, url: str, picture: bytes, timeout_s: float = 30.0) -> bytes:
    """The PNG of one answer. Raises: OSError, http.client.HTTPException, ValueError."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=timeout_s)
    headers = {"Content-Type": contender.content_type}
    headers |= dict(line.split(": ", 1) for line in contender.headers)
    try:
        connection.request("POST", where.path, picture, headers)
        reply = connection.getresponse()
        content = reply.read()
    finally:
        connection.close()
    start = content.find(_PNG)  # a Triton reply has its JSON head before it
    if reply.status != 200 or start < 0:
        raise ValueError(f"answers {reply.status}: {content[:200]!r}")
    return content[start:]


def processes(mark: str) -> list[int]:
    """Ids of the processes started, however indirectly, with this mark in their environment."""
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
    """The first of three free neighbours: some servers want more than one port."""
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


def _command(contender: Contender, port: int, model: Path) -> list[str]:
    if contender is OURS:
        repository = model.parents[2]
        # Named, for on a CPU made for it the 8-bit file would be served by default.
        precision = "int8" if model.name == INT8_FILE else "fp32"
        return [sys.executable, "-m", "cli.main", "serve", f"--http-port={port}", "--grpc-port=0",
                f"--model-repository={repository}", f"--default-model={model.parents[1].name}",
                f"--precision={precision}", "--log-level=warning"]  # fmt: skip
    return [str(contender.python), *contender.module]


def _working_folder(contender: Contender, scratch: Path) -> Path:
    """A copy: some servers write next to their code."""
    if contender is OURS:
        return ROOT
    folder = scratch / "server"
    shutil.copytree(PEERS / contender.name, folder)
    return folder


def _environment(
    contender: Contender,
    variant: Variant,
    model: Path,
    port: int,
    limit: int,
    scratch: Path,
    mark: str,
) -> Mapping[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FCN_", "BENCH_", "OMP_"))}
    return {
        **kept,
        "ORT_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONPATH": str(ROOT) if contender is OURS else f"{scratch / 'server'}:{PEERS}",
        "BENCH_MODEL": str(model),
        "BENCH_PORT": str(port),
        "BENCH_WORKERS": str(variant.workers),
        "BENCH_THREADS": str(variant.threads),
        "BENCH_BATCH": str(variant.batch),
        "BENCH_LIMIT": str(limit),
        "BENCH_SCRATCH": str(scratch),
        "BENTOML_PORT": str(port),
        "BENTOML_HOME": str(scratch / "bentoml"),
        "TMPDIR": str(scratch),
        _MARK: mark,
        **dict(contender.environment),
    }


def _first_answer(
    contender: Contender, url: str, picture: bytes, process: subprocess.Popen[bytes]
) -> bytes:
    until = time.monotonic() + READY_S
    said = "no connection"
    while time.monotonic() < until:
        if process.poll() is not None:
            raise CannotRun(f"does not start: exit code {process.returncode}")
        try:
            return ask(contender, url, picture)
        except (OSError, http.client.HTTPException, ValueError) as error:
            said = str(error)
        time.sleep(0.02)
    raise CannotRun(f"is not ready after {READY_S:.0f} s: {said}")


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


def _pss_kib(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:  # gone meanwhile
        pass
    return 0


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing"
