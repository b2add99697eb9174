"""Pictures of many sizes that wait for one network: alone, in groups of a size, in ragged batches.

    python -m bench.ragged [--provider cpu] [--seconds 3] [--networks mobilenet_v1 FILE.onnx ...]

A queue is kept filled with pictures of random sizes, and the server's own queue and sessions make
batches of it and run them. It has no age cap here, so every policy makes the batches it would like
to. What differs is how large they are, how much of them is padding, and what the masks cost of a
network that takes ragged batches. Weights of networks given by name are random.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import record
from bench.model_latency import bench_contract, make_network
from model.export import export
from model.ragged.file import make_ragged
from service.core.batching.policy import Queue, Queued
from service.core.engines.onnx_runtime import Session
from service.core.images.frames import frame, stack
from service.core.types import DeviceRun, Priority

UInt8Array = npt.NDArray[np.uint8]

MAX_BATCH = 8
DEPTH = 32
"""Pictures that wait when a batch is made."""
MAX_PADDING = (0.125, 0.25, 0.5)
_SLOTS = 3
_NEVER_S = 1e6
_BUDGET_PX = 8 * 1024 * 1024

VOC = {
    (375, 500): 0.50,
    (333, 500): 0.15,
    (500, 375): 0.12,
    (332, 500): 0.05,
    (334, 500): 0.05,
    (500, 333): 0.05,
    (360, 480): 0.04,
    (480, 640): 0.04,
}
"""Height, width -> share. As PASCAL VOC's pictures are, by eye: 500 px on the long side, mostly 4:3
and upright or not; with a few from cameras and telephones. The shares are a guess."""


def voc(random: np.random.Generator) -> Iterator[tuple[int, int]]:
    sizes = list(VOC)
    while True:
        yield sizes[random.choice(len(sizes), p=list(VOC.values()))]


def cropped(random: np.random.Generator) -> Iterator[tuple[int, int]]:
    """No two alike, as people crop: 500 px on the long side and 250 to 500 on the other."""
    while True:
        sides = (500, int(random.integers(250, 501)))
        yield sides if random.random() < 0.3 else sides[::-1]


MIXES: Mapping[str, Callable[[np.random.Generator], Iterator[tuple[int, int]]]] = {
    "voc": voc,
    "cropped": cropped,
}


@dataclass(frozen=True, slots=True)
class Policy:
    """`session` runs the batches that a queue makes within these bounds."""

    name: str
    session: Session
    max_batch: int
    max_padding: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description="pictures of many sizes, grouped and ragged")
    parser.add_argument("--provider", default="cpu", help="as FCN_PROVIDER (cpu)")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each policy and mix (3)")
    parser.add_argument(
        "--networks", nargs="+", default=["mobilenet_v1"], help="backbones, or exported files"
    )
    parser.add_argument("--out", type=Path, default=record.RESULTS / "ragged.json")
    args = parser.parse_args()
    measured = measure(args.provider, args.networks, args.seconds)
    print_table(measured["rows"])
    record.write(args.out, measured)


def measure(provider: str, networks: Sequence[str], seconds: float) -> dict[str, Any]:
    """One row per network, mix and policy. networks: backbones of FCN-8s (AlexNet's is 32s), or
    paths of exported files. seconds: for each row, after as long a start that does not count."""
    rows = []
    for network in networks:
        with tempfile.TemporaryDirectory() as folder:
            plain, ragged = _files(network, Path(folder))
            threads = len(os.sched_getaffinity(0))
            alone, mixed = (
                Session(path, provider=provider, threads=threads) for path in (plain, ragged)
            )
            name = alone.contract.model_name if Path(network).suffix else network
            policies = [
                Policy("alone", alone, 1),
                Policy("grouped", alone, MAX_BATCH),
                Policy("grouped, with masks", mixed, MAX_BATCH),
                *(Policy(f"ragged, {p:g}", mixed, MAX_BATCH, p) for p in MAX_PADDING),
            ]
            for mix in MIXES:
                for row in take_turns(policies, mix, seconds):
                    rows.append({"network": name, "mix": mix, **row})
    return {
        "provider": provider,
        "max_batch": MAX_BATCH,
        "depth": DEPTH,
        "seconds": seconds,
        "rows": rows,
    }


def _files(network: str, folder: Path) -> tuple[Path, Path]:
    plain, ragged = Path(network), folder / "ragged.onnx"
    if plain.suffix != ".onnx":
        plain = folder / "plain.onnx"
        export(make_network(network), bench_contract(), plain)
    make_ragged(plain, ragged)
    return plain, ragged


def take_turns(policies: Sequence[Policy], mix: str, seconds: float) -> list[dict[str, Any]]:
    """In slots, there and back, so that a machine that slows down favours none."""
    loads = [Load(policy, mix) for policy in policies]
    for load in loads:
        load.run(seconds / _SLOTS)
        load.forget()
    for slot in range(_SLOTS):
        for load in loads if slot % 2 == 0 else loads[::-1]:
            load.run(seconds / _SLOTS)
    return [load.row() for load in loads]


class Load:
    """One policy's queue, which is filled up after every batch."""

    def __init__(self, policy: Policy, mix: str) -> None:
        self._policy = policy
        self._random = np.random.default_rng(0)
        self._sizes = MIXES[mix](self._random)
        self._queue: Queue[Queued] = Queue(
            max_batch=policy.max_batch,
            max_batch_pixels=_BUDGET_PX,
            age_cap_s=_NEVER_S,
            max_padding=policy.max_padding,
        )
        self._grain = self._random.integers(0, 256, (640, 640, 3), np.uint8)
        self.forget()

    def forget(self) -> None:
        self._images = self._batches = self._pixels = self._frames = 0
        self._seconds = 0.0

    def run(self, seconds: float) -> None:
        """At least one batch."""
        ends = time.perf_counter() + seconds
        while True:
            while len(self._queue) < DEPTH:
                height, width = next(self._sizes)
                image = np.ascontiguousarray(self._grain[:height, :width])
                queued = Queued(Priority.NORMAL, None)
                queued.came(image, time.perf_counter())
                self._queue.add(queued)
            images = [q.image for q in self._queue.take(time.perf_counter(), lambda *_: 0.0)]
            began = time.perf_counter()
            self._answer(images)
            now = time.perf_counter()
            self._seconds += now - began
            self._images += len(images)
            self._batches += 1
            self._pixels += sum(image.shape[0] * image.shape[1] for image in images)
            self._frames += len(images) * math.prod(frame(images))
            if now >= ends:
                return

    def _answer(self, images: list[UInt8Array]) -> None:
        session = self._policy.session
        run = session.instances[0]
        batch = run.stack(images) if isinstance(run, DeviceRun) else stack(images)
        if len({image.shape for image in images}) == 1:
            label_maps = session.instances[0](batch)
        else:
            sizes = [(image.shape[0], image.shape[1]) for image in images]
            label_maps = session.ragged[0](batch, sizes)
        if len(label_maps) != len(images):
            raise RuntimeError(f"{len(images)} pictures, {len(label_maps)} answers")

    def row(self) -> dict[str, Any]:
        return {
            "policy": self._policy.name,
            "images_per_s": round(self._images / self._seconds, 2),
            "megapixels_per_s": round(self._pixels / self._seconds / 1e6, 3),
            "mean_batch": round(self._images / self._batches, 2),
            "padding": round(1 - self._pixels / self._frames, 4),
            "images": self._images,
        }


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    print("| network | mix | policy | images/s | Mpx/s | mean batch | padding |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['network']} | {row['mix']} | {row['policy']} | {row['images_per_s']:.1f} "
            f"| {row['megapixels_per_s']:.2f} | {row['mean_batch']:.1f} | {row['padding']:.1%} |"
        )


if __name__ == "__main__":
    main()
