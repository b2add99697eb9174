"""Names the servers that are compared: ours as `fcn serve` starts it, and the peers.

A peer is a folder beside this file: `server.py`, and `requirements.txt` for the virtual environment
that `install` makes for it under a folder that git ignores.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import servers
from bench.servers import ROOT, CannotRun, Command, Running, fcn_serve, free_port, last_line

PEERS = Path(__file__).parent
CACHE = ROOT / "build" / "peers"


@dataclass(frozen=True, slots=True)
class Variant:
    """Shares out the cores of a peer: processes or instances, threads of one inference, batch."""

    workers: int
    threads: int
    batch: int = 1

    def __str__(self) -> str:
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        return f"{self.workers} x {self.threads} thread{'s'[: self.threads > 1]}{batch}"


@dataclass(frozen=True, slots=True)
class Contender:
    """Describes a server. `overload`: what bounds the work inside it, in words; "" if nothing."""

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
        """Gives one worker with every core, one for each core, and a batch where it batches."""
        found = (Variant(1, cores), Variant(cores, 1))
        return (*found, Variant(1, cores, 4)) if self.batches else found

    @property
    def python(self) -> Path:
        return CACHE / self.name / "bin" / "python" if self.own_venv else Path(sys.executable)

    @property
    def requirements(self) -> Path:
        return PEERS / self.name / "requirements.txt"


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
    """Makes its virtual environment, once for each state of its requirements. Raises: CannotRun."""
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
            raise CannotRun(f"does not install: {last_line(done.stderr or done.stdout)}")
    shutil.copy(contender.requirements, stamp)


def version(contender: Contender) -> str:
    code = f"import importlib.metadata as m; print(m.version({contender.package!r}))"
    done = subprocess.run(
        [str(contender.python), "-c", code], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


@contextmanager
def running(
    contender: Contender, variant: Variant, model: Path, image: bytes, *, bound: int = 0
) -> Iterator[Running]:
    """Serves with a contender during the block. model: `<repository>/<name>/<version>/<file>`.

    bound: see BENCH_BOUND in bench/peers/network.py; ours takes none and no variant, for it has one
    configuration. Raises: CannotRun.
    """
    scratch = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        command = _command(contender, variant, model, bound, scratch)
        with servers.running(command, image) as server:
            yield server
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _command(
    contender: Contender, variant: Variant, model: Path, bound: int, scratch: Path
) -> Command:
    if contender is OURS:
        # Named, for on a CPU made for it the 8-bit file would be served by default.
        return fcn_serve(ROOT, model, "int8" if "int8" in model.name else "fp32")
    folder, port = scratch / "server", free_port()
    shutil.copytree(PEERS / contender.name, folder)  # some servers write next to their code
    return Command(
        [str(contender.python), *contender.module],
        folder,
        f"http://127.0.0.1:{port}{contender.path}",
        environment={
            "PYTHONPATH": f"{folder}:{PEERS}",
            "BENCH_MODEL": str(model),
            "BENCH_PORT": str(port),
            "BENCH_WORKERS": str(variant.workers),
            "BENCH_THREADS": str(variant.threads),
            "BENCH_BATCH": str(variant.batch),
            "BENCH_BOUND": str(bound),
            "BENCH_SCRATCH": str(scratch),
            "BENTOML_PORT": str(port),
            "BENTOML_HOME": str(scratch / "bentoml"),
            "TMPDIR": str(scratch),
            **dict(contender.environment),
        },
        content_type=contender.content_type,
        headers=contender.headers,
    )
