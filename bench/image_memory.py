"""Measures what a container's memory comes to when callers send the largest images at once.

Each kind of image is sent by 2 and by 24 callers to a server with the shipped model, which is alone
in a memory cgroup of 1 and of 2 GiB, as in a container. What is written: how the callers were
answered, the cgroup's peak, and whether the server lived on. Wants root on Linux.
"""

from __future__ import annotations

import collections
import http.client
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from bench import record
from bench.servers import ROOT, free_port

SIDE: Final = 6320
"""Its square is just under FCN_MAX_IMAGE_PIXELS."""
MIB: Final = 1 << 20
DEADLINE_MS: Final = 15_000
"""An image's memory is highest while it is decoded and run, before anybody has an answer."""
_CGROUPS: Final = Path("/sys/fs/cgroup")
_TURNED = Image.Exif()
_TURNED[0x0112] = 6


def _encoded(mode: str, form: str, **options: Any) -> bytes:
    """Encodes coarse areas of colour: a small file, whose pixels take what pixels take."""
    areas = np.random.default_rng(0).integers(0, 256, (79, 79, 3), np.uint8)
    image = Image.fromarray(areas).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    with io.BytesIO() as file:
        image.save(file, form, **options)
        return file.getvalue()


KINDS: Final[dict[str, Callable[[], bytes]]] = {
    "JPEG": lambda: _encoded("RGB", "JPEG"),
    "JPEG, progressive, turned": lambda: _encoded("RGB", "JPEG", progressive=True, exif=_TURNED),
    "JPEG, CMYK": lambda: _encoded("CMYK", "JPEG"),
    "PNG with alpha, turned": lambda: _encoded("RGBA", "PNG", exif=_TURNED),
    "PNG, 16 bits": lambda: _encoded("I;16", "PNG"),
    "TIFF, 16 bits": lambda: _encoded("I;16", "TIFF", compression="tiff_deflate"),
    "TIFF with alpha, one strip": lambda: _encoded(
        "RGBA", "TIFF", compression="tiff_deflate", strip_size=1 << 30
    ),
    "WebP": lambda: _encoded("RGB", "WEBP", method=0),
}


@contextmanager
def _cgroup(memory_bytes: int) -> Iterator[tuple[Path, Path]]:
    """Makes a memory cgroup; yields it, and where a process is to see it."""
    old = _CGROUPS / "memory"
    root = old if old.is_dir() else _CGROUPS
    group = root / f"fcn-bench-{os.getpid()}"
    group.mkdir()
    try:
        limit = "memory.limit_in_bytes" if root == old else "memory.max"
        (group / limit).write_text(str(memory_bytes))
        yield group, root
    finally:
        for _ in range(100):
            try:
                group.rmdir()
                break
            except OSError:  # its last process is still ending
                time.sleep(0.1)


def _peak(group: Path) -> int:
    names = ("memory.max_usage_in_bytes", "memory.peak")
    return next(int((group / name).read_text()) for name in names if (group / name).exists())


def _asked(port: int, method: str, path: str, body: bytes | None = None) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=90)
    try:
        connection.request(method, path, body)
        with connection.getresponse() as answer:
            answer.read()
            return str(answer.status)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


def measured(body: bytes, callers: int, memory_bytes: int) -> dict[str, Any]:
    """Sends the image from so many callers at once. Raises: RuntimeError if nothing starts."""
    port = free_port()
    with _cgroup(memory_bytes) as (group, root):
        serve = f'echo $$ > {group}/cgroup.procs; mount --bind {group} {root}; exec "$@"'
        flags = [f"--http-port={port}", f"--grpc-port={port + 1}", "--log-level=error"]
        words = [sys.executable, "-m", "cli.main", "serve", *flags]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FCN_")}
        server = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", serve, "sh", *words],
            cwd=ROOT, env=kept, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            ends = time.monotonic() + 60
            while _asked(port, "GET", "/readyz") != "200":
                if server.poll() is not None or time.monotonic() > ends:
                    raise RuntimeError("the server did not become ready")
                time.sleep(0.2)
            answers: collections.Counter[str] = collections.Counter()

            def ask() -> None:
                answers[_asked(port, "POST", f"/segment?deadline_ms={DEADLINE_MS}", body)] += 1

            threads = [threading.Thread(target=ask) for _ in range(callers)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            alive = _asked(port, "GET", "/livez") == "200"
            peak_mib = _peak(group) // MIB
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    return {"answers": dict(sorted(answers.items())), "peak_mib": peak_mib, "alive": alive}


def main() -> int:
    parser = record.parser("bench.image_memory", __doc__)
    parser.add_argument("--memory-mib", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--callers", type=int, nargs="+", default=[2, 24])
    parser.add_argument("--results", type=Path, default=record.RESULTS / "image-memory.json")
    options = parser.parse_args()
    rows = []
    for kind, made in KINDS.items():
        body = made()
        for memory_mib in options.memory_mib:
            for callers in options.callers:
                found = measured(body, callers, memory_mib * MIB)
                rows.append({"kind": kind, "memory_mib": memory_mib, "callers": callers} | found)
                print(rows[-1], flush=True)
    record.write(options.results, {"side_px": SIDE, "runs": rows})
    return int(not all(row["alive"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
