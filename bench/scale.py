"""Measures what `fcn scale` reckons with, and checks its simulation with two replicas.

    python -m bench.scale model_repository/NAME/1/model.onnx [--seconds 20] [--out FILE]

Each replica has one core of its own; the client that loads them runs on the same two. Its images
come at random (Poisson), and wait for nobody. Kept are: the time of a start, images/s of one and
of two replicas, the times of one image, bytes of each output over REST and gRPC, and p50 and p99
beside those that are simulated with these times.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx

from bench import record
from bench.images import jpeg
from bench.servers import ROOT, Command, fcn_serve, running
from cli._load import open_loop
from cli._simulation import Replica, latencies_s, percentile, poisson
from fcn_client import AsyncFcnClient, FcnClient, Overloaded, RetryPolicy, Timings
from fcn_client.stubs import segmentation_pb2 as pb
from fcn_client.stubs import segmentation_pb2_grpc as pb_grpc

SIZE = (360, 480)
CORES = (0, 1)
STARTS = 3
WARM_S = 3.0
"""A network is compiled anew for the first image of a size."""
ONCE = RetryPolicy(max_attempts=1)
SHARES = (0.5, 0.7, 0.85)
"""Parts of what two replicas do at most, each of which is a load."""
OUTPUTS = (
    "label_map",
    "color",
    "overlay",
    "confidence",
    "json",
    "polygons",
    "rle",
    "probabilities",
)
RANKS = 11


def on_core(command: Command, core: int) -> Command:
    return replace(command, words=["taskset", "--cpu-list", str(core), *command.words])


def base(command: Command) -> str:
    return command.url.removesuffix("/segment")


def alone_s(command: Command, image: bytes, seconds: float) -> list[float]:
    """Asks for one image after the other; how long each took, sorted."""
    found = []
    with FcnClient(base(command), retry=ONCE) as client:
        ends = time.perf_counter() + seconds
        while (began := time.perf_counter()) < ends:
            client.segment(image)
            found.append(time.perf_counter() - began)
    return sorted(found)


def at_most(commands: Sequence[Command], image: bytes, seconds: float) -> float:
    """Keeps four images under way at each; images/s."""
    urls = [base(command) for command in commands]
    with FcnClient(urls, retry=ONCE) as client:
        ends = time.perf_counter() + seconds

        def images() -> Any:
            while time.perf_counter() < ends:
                yield image

        began, count = time.perf_counter(), 0
        for outcome in client.segment_many(images(), in_flight=4 * len(urls), ordered=False):
            outcome.unwrap()
            count += 1
        return count / (time.perf_counter() - began)


async def under_load(
    urls: Sequence[str], image: bytes, rate: float, seconds: float, balancer: str
) -> list[float]:
    """Sends images when they are due; the time from then to each answer, sorted, without those that
    were refused."""
    chance = random.Random(1)
    groups = [[url] for url in urls] if balancer == "random" else [list(urls)]
    clients = [AsyncFcnClient(group, retry=ONCE) for group in groups]

    async def ask(_: int) -> Timings:
        return (await chance.choice(clients).segment(image)).timings

    answers = await open_loop(ask, poisson(rate, seconds, 1), patience_s=60.0)
    for client in clients:
        await client.aclose()
    if failures := {answer.error for answer in answers} - {"", Overloaded.kind}:
        raise RuntimeError(f"not only refusals: {', '.join(failures)}")
    return sorted(answer.latency_s for answer in answers if not answer.error)


def reply_bytes(command: Command, image: bytes) -> list[dict[str, Any]]:
    """Counts what an answer of each output has, heads included over REST."""
    rows = []
    with (
        httpx.Client(timeout=30.0) as rest,
        grpc.insecure_channel(
            command.grpc.removeprefix("grpc://"), [("grpc.max_receive_message_length", -1)]
        ) as channel,
    ):
        stub = pb_grpc.SegmentationStub(channel)
        for output in OUTPUTS:
            reply = rest.post(command.url, params={"output": output}, content=image)
            row: dict[str, Any] = {"output": output}
            if reply.status_code == httpx.codes.OK:
                head = sum(len(name) + len(value) + 4 for name, value in reply.headers.raw)
                row["rest_bytes"] = head + reply.num_bytes_downloaded
                kind = f"OUTPUT_{output.upper()}"
                answer = stub.Segment(pb.SegmentRequest(image=image, output=kind), timeout=30)
                row["grpc_bytes"] = answer.ByteSize()
            else:
                row["refused"] = reply.json()["title"]
            rows.append(row)
    return rows


def ranks_ms(values: Sequence[float], images_per_s: float) -> list[float]:
    """Picks times in equal steps of their rank, scaled so that a replica does `images_per_s`."""
    picked = [percentile(values, 100 * n / (RANKS - 1)) for n in range(RANKS)]
    scale = Replica(1, [1000 * p for p in picked]).images_per_s / images_per_s
    return [round(1000 * p * scale, 2) for p in picked]


def main(words: Sequence[str] | None = None) -> int:
    parser = record.parser("bench.scale", __doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load (default: 20)")
    parser.add_argument("--out", type=Path, default=record.RESULTS / "scale.json")
    args = parser.parse_args(words)
    image = jpeg(SIZE)
    commands = [on_core(fcn_serve(ROOT, args.model), core) for core in CORES]
    starts = []
    for _ in range(STARTS):
        with running(commands[0], image) as server:
            starts.append(server.start_s)
    with ExitStack() as held:
        held.enter_context(running(commands[0], image))
        commands[1] = on_core(fcn_serve(ROOT, args.model), CORES[1])  # on ports free by now
        at_most(commands[:1], image, WARM_S)
        alone = alone_s(commands[0], image, args.seconds / 3)
        one = at_most(commands[:1], image, args.seconds / 3)
        sizes = reply_bytes(commands[0], image)
        held.enter_context(running(commands[1], image))
        at_most(commands[1:], image, WARM_S)
        two = at_most(commands, image, args.seconds / 3)
        replica = Replica(1, ranks_ms(alone, two / len(commands)))
        rows = []
        for share in SHARES:
            for balancer in ("random", "least-loaded"):
                rate = share * two
                urls = [base(command) for command in commands]
                found = asyncio.run(under_load(urls, image, rate, args.seconds, balancer))
                told = latencies_s(replica, len(urls), rate, balancer)
                row: dict[str, Any] = {"balancer": balancer, "share": share, "rate": round(rate, 1)}
                for name, values in (("measured", found), ("simulated", told)):
                    row[name] = {
                        f"p{p}_ms": round(1000 * percentile(values, p), 1) for p in (50, 95, 99)
                    }
                sent = len(poisson(rate, args.seconds, 1))
                rows.append({**row, "sent": sent, "refused": sent - len(found)})
                print(rows[-1], file=sys.stderr, flush=True)
    record.write(
        args.out,
        {
            "size": SIZE,
            "image_bytes": len(image),
            "start_s": starts,
            "one_replica_images_per_s": round(one, 1),
            "two_replicas_images_per_s": round(two, 1),
            "alone_ms": round(1000 * statistics.median(alone), 2),
            "service_ms": ranks_ms(alone, one),
            "replies": sizes,
            "rows": rows,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
