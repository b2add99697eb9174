"""Runs a server for long under valid and hostile traffic at once: `make soak MINUTES=60`.

Valid requests over REST, gRPC and the Open Inference Protocol are compared with answers computed
once, here. Meanwhile others send damaged images and broken HTTP, leave before they are answered,
have keys that come and go, and a model that is loaded anew again and again. At the end: no wrong
answer, no 5xx but those that are declared, and memory, descriptors and threads as after warm-up.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np

from bench import record
from fcn_client.stubs import segmentation_pb2 as pb
from tests.drawing import UInt8Array, encode, read_png, street
from tests.fuzz.images import images
from tests.fuzz.target import mutated
from tests.link import Link
from tests.serving import Server, running
from tests.tiny_models import expected_label_map, write_model

KEY, COMING, ADMIN = "the-key-that-stays-" + "a" * 20, "the-key-that-goes-" + "b" * 20, "c" * 40
DECLARED = {429, 503, 504}
"""Answers that a busy server may give to what is well-formed."""
GROWTH = 0.10
"""Memory of the last quarter may be so much above that of the second."""
MORE = 16
"""Descriptors and threads may be so many more, since traffic is drawn by chance."""
WATCHED = ("own_kib", "descriptors", "threads", "processes")
SIZES = ((24, 32), (120, 160), (240, 320))
OTHER_BIAS = (200.0, 0.0, 0.0)
Act = Callable[[random.Random], str]


class Traffic:
    """Sends requests of one kind after the other; each says in a word how it ended."""

    def __init__(self, server: Server, keys: Path, repository: Path) -> None:
        self._server, self._keys, self._repository = server, keys, repository
        self._images = [street(*size, seed=n) for n, size in enumerate(SIZES)]
        self._bodies = [(rgb, encode(rgb, kind)) for rgb in self._images for kind in ("PNG", "BMP")]
        self._hostile = images()
        self._address = server.http_address

    def client(self, key: str = KEY) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self._server.url, timeout=60, headers=headers)

    def rest(self, client: httpx.Client, chance: random.Random) -> str:
        rgb, body = chance.choice(self._bodies)
        answer = client.post("/segment?model=tiny", content=body)
        return _judged(answer.status_code, lambda: read_png(answer.content), rgb)

    def rpc(self, chance: random.Random) -> str:
        rgb, body = chance.choice(self._bodies)
        metadata = (("authorization", f"Bearer {KEY}"),)
        try:
            reply = self._server.stub.Segment(
                pb.SegmentRequest(image=body, model="tiny"), metadata=metadata, timeout=60
            )
        except grpc.RpcError as error:
            code = error.code()
            declared = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
            return f"declared {code.name}" if code in declared else f"BAD {code.name}"
        return _judged(200, lambda: read_png(reply.body), rgb)

    def oip(self, client: httpx.Client, chance: random.Random) -> str:
        rgb = chance.choice(self._images)
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *rgb.shape]}
        asked = [{"name": "label_map", "parameters": {"binary_data": True}}]
        size = {"parameters": {"binary_data_size": rgb.nbytes}}
        head = json.dumps({"inputs": [tensor | size], "outputs": asked}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        answer = client.post("/v2/models/tiny/infer", content=head + rgb.tobytes(), headers=headers)

        def labels() -> UInt8Array:
            at = int(answer.headers["inference-header-content-length"])
            return np.frombuffer(answer.content[at:], np.uint8).reshape(rgb.shape[:2])

        return _judged(answer.status_code, labels, rgb)

    def damaged(self, client: httpx.Client, chance: random.Random) -> str:
        body = mutated(chance, self._hostile)
        status = client.post("/segment?model=tiny", content=body).status_code
        return str(status) if status in {200, 400, 413, 415} | DECLARED else f"BAD {status}"

    def broken(self, chance: random.Random) -> str:
        """Sends what is no HTTP, or half of a request, and leaves."""
        head = b"POST /segment HTTP/1.1\r\nHost: x\r\n"
        sent = chance.choice(
            (
                chance.randbytes(200),
                head + b"Content-Length: 1000\r\n\r\nhalf",
                head + b"X: " + b"a" * 20000 + b"\r\n\r\n",
                head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
                b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 20,
            )
        )
        with contextlib.suppress(OSError), Link(self._server) as link:
            link.send(sent)
        return "left"

    def leaving(self, chance: random.Random) -> str:
        """Asks, and leaves before the answer."""
        _, body = chance.choice(self._bodies)
        if chance.random() < 0.5:
            metadata = (("authorization", f"Bearer {KEY}"),)
            call = self._server.stub.Segment.future(
                pb.SegmentRequest(image=body, model="tiny"), metadata=metadata, timeout=60
            )
            time.sleep(chance.random() / 50)
            call.cancel()
            return "cancelled"
        head = f"POST /segment?model=tiny HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n"
        with contextlib.suppress(OSError), Link(self._server) as link:
            link.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(chance.random() / 50)
        return "cancelled"

    def key_that_goes(self, client: httpx.Client, chance: random.Random) -> str:
        """Takes a key out of the file or puts it back, and asks with it."""
        if chance.random() < 0.02:
            keep = chance.random() < 0.5
            write_keys(self._keys, coming=keep)
        rgb, body = chance.choice(self._bodies)
        answer = client.post("/segment?model=tiny", content=body)
        if answer.status_code == 401:
            return "401"
        return _judged(answer.status_code, lambda: read_png(answer.content), rgb)

    def reloads(self, client: httpx.Client, chance: random.Random) -> str:
        """Loads another model, unloads it, or puts a new file in its place, and asks it."""
        act = chance.random()
        if act < 0.1:
            verb = chance.choice(("load", "unload"))
            status = client.post(f"/v2/repository/models/other/{verb}").status_code
            return f"{verb} {status}" if status in {200, 404, 503} else f"BAD {verb} {status}"
        if act < 0.13:
            made = self._repository.parent / "made"
            path = write_model(made, "other", bias=chance.choice(((0.0, 0.0, 0.0), OTHER_BIAS)))
            path.replace(self._repository / "other" / "1" / "model.onnx")
            return "a new file"
        rgb, body = chance.choice(self._bodies)
        answer = client.post("/segment?model=other", content=body)
        if answer.status_code in {404, 503}:
            return f"declared {answer.status_code}"
        return _judged(
            answer.status_code, lambda: read_png(answer.content), rgb, ((0.0, 0.0, 0.0), OTHER_BIAS)
        )


def _judged(
    status: int,
    labels: Callable[[], UInt8Array],
    rgb: UInt8Array,
    biases: tuple[tuple[float, ...], ...] = ((0.0, 0.0, 0.0),),
) -> str:
    if status != 200:
        return f"declared {status}" if status in DECLARED else f"BAD {status}"
    found = labels()
    right = any(np.array_equal(found, expected_label_map(rgb, bias)) for bias in biases)
    return "right" if right else "WRONG"


def write_keys(path: Path, *, coming: bool = True) -> None:
    lines = [f"stays {KEY}", f"admin {ADMIN} role=predict,admin"]
    lines += [f"goes {COMING}"] if coming else []
    beside = path.with_suffix(".new")
    beside.write_text("\n".join(lines) + "\n")
    beside.replace(path)


def sample(pid: int) -> dict[str, int]:
    """Reads what the server and the processes it has forked hold: KiB, descriptors, threads.

    own_kib: pages that no file holds, those that several processes share divided among them.
    Libraries' pages are left out: the part of them that is counted here rises and falls by 20 MB
    with every other process of the machine that uses the same libraries.
    """
    pids, found = [pid], dict.fromkeys(WATCHED, 0)
    while pids:
        one = pids.pop()
        with contextlib.suppress(OSError):  # one that has just ended
            for task in Path(f"/proc/{one}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
            status = dict(
                line.split(":", 1) for line in Path(f"/proc/{one}/status").read_text().splitlines()
            )
            rolled = Path(f"/proc/{one}/smaps_rollup").read_text()
            for kind in ("Pss_Anon:", "Pss_Shmem:"):
                found["own_kib"] += int(rolled.split(kind)[1].split()[0])
            found["threads"] += int(status["Threads"])
            found["descriptors"] += len(list(Path(f"/proc/{one}/fd").iterdir()))
            found["processes"] += 1
    return found


def soak(minutes: float, seed: int, pause_s: float = 0.02) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        repository, keys = folder / "models", folder / "keys"
        write_model(repository, "tiny")
        write_model(repository, "other")
        write_keys(keys)
        with running(repository, api_keys_file=keys, model_poll_s=1) as server:
            return _soaked(server, Traffic(server, keys, repository), 60 * minutes, seed, pause_s)
    finally:
        shutil.rmtree(folder)


def _soaked(
    server: Server, traffic: Traffic, seconds: float, seed: int, pause_s: float
) -> dict[str, Any]:
    stop = threading.Event()
    counts: dict[str, collections.Counter[str]] = {}

    def run(name: str, act: Act) -> None:
        chance, mine = (
            random.Random(f"{seed} {name}"),
            counts.setdefault(name, collections.Counter()),
        )
        while not stop.is_set():
            try:
                mine[act(chance)] += 1
            except Exception as error:  # a connection that broke, say: never in order
                mine[f"BAD {type(error).__name__}"] += 1
            stop.wait(2 * pause_s * chance.random())

    predict, goes, admin = traffic.client(), traffic.client(COMING), traffic.client(ADMIN)
    acts: dict[str, Act] = {
        "REST": lambda chance: traffic.rest(predict, chance),
        "gRPC": traffic.rpc,
        "OIP": lambda chance: traffic.oip(predict, chance),
        "damaged images": lambda chance: traffic.damaged(predict, chance),
        "broken HTTP": traffic.broken,
        "callers who leave": traffic.leaving,
        "a key that goes": lambda chance: traffic.key_that_goes(goes, chance),
        "reloads": lambda chance: traffic.reloads(admin, chance),
    }
    threads = [threading.Thread(target=run, args=item, daemon=True) for item in acts.items()]
    for thread in threads:
        thread.start()
    samples = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and server.process.poll() is None:
        time.sleep(max(1.0, seconds / 120))
        samples.append(sample(server.process.pid))
    stop.set()
    for thread in threads:
        thread.join(60)
    server.settles("fcn_inflight_requests", 0)
    at_rest = sample(server.process.pid)
    for client in (predict, goes, admin):
        client.close()
    return _report(counts, samples, at_rest, server, seconds)


def _report(
    counts: dict[str, collections.Counter[str]],
    samples: list[dict[str, int]],
    at_rest: dict[str, int],
    server: Server,
    seconds: float,
) -> dict[str, Any]:
    quarter = max(1, len(samples) // 4)
    faults = [
        f"{name}: {word} {number} times"
        for name, mine in counts.items()
        for word, number in mine.items()
        if word.startswith(("BAD", "WRONG"))
    ]
    held: dict[str, dict[str, int]] = {}
    for what in WATCHED:
        warm = max(one[what] for one in samples[quarter : 2 * quarter] or samples)
        last = max(one[what] for one in samples[-quarter:])
        held[what] = {"second_quarter": warm, "last_quarter": last, "at_rest": at_rest[what]}
        most = warm * (1 + GROWTH) if what == "own_kib" else warm + MORE
        if last > most:
            faults.append(f"{what} grew from {warm} to {last}")
    for name in ("REST", "gRPC", "OIP"):
        if not counts[name]["right"]:
            faults.append(f"{name}: nothing was answered")
    if server.process.poll() is not None:
        faults.append(f"the server ended with {server.process.returncode}")
    lost = sum(
        server.metric(f'fcn_decode_workers_lost_total{{reason="{why}"}}')
        for why in ("crash", "hang")
    )
    return {
        "seconds": round(seconds),
        "requests": {name: dict(sorted(mine.items())) for name, mine in counts.items()},
        "held": held,
        "own_kib_by_time": [one["own_kib"] for one in samples],
        "decode_workers_lost": lost,
        "faults": faults,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.02, help="seconds, between requests")
    parser.add_argument("--results", type=Path, default=record.RESULTS / "soak.json")
    options = parser.parse_args()
    found = soak(options.minutes, options.seed, options.pause)
    for name, mine in found["requests"].items():
        print(f"{name:18} {sum(mine.values()):>8}  {mine}")
    for what, values in found["held"].items():
        print(f"{what:18} {values}")
    for fault in found["faults"]:
        print(f"FAULT {fault}")
    record.write(options.results, found)
    return int(bool(found["faults"]))


if __name__ == "__main__":
    sys.exit(main())
