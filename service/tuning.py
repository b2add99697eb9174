"""Which engine, and how many inferences, threads and pictures at once, suit this machine.

`fcn tune` measures with this and writes the answer as a settings file.
"""

from __future__ import annotations

import importlib.util
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from service.core.engines.choice import open_network
from service.core.engines.cores import Plan, plan
from service.core.types import Clock, Instance, Network
from service.errors import ModelLoadError

Progress = Callable[[float, str], None]
"""Share of the time that has gone by, 0..1, and what is measured now."""

BATCHES: Final = (1, 4)
CLOSE: Final = 0.97
"""Of the best images/s: what comes this close and is simpler is chosen."""
WORTH_A_BATCH: Final = 1.08
"""Times the images/s of single pictures: in a batch each waits for the others, so less is no gain.
On a quiet machine batches of 4 gained nothing, and on a busy one by chance 5 % (bench/LOG.md)."""
WORTH_A_COPY: Final = 0.9
"""Of the usual latency: a lone picture must be this much faster for a second copy of the model."""
_SHARE_OF_THROUGHPUT = 0.75
_PASSES = 4  # there and back: a shared machine is faster at one moment than at the next


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to run the network. batch: pictures in one inference."""

    engine: str
    instances: int
    threads: int
    batch: int


@dataclass(frozen=True, slots=True)
class Throughput:
    """With every instance busy. p50_ms: of one inference, so of `batch` pictures."""

    candidate: Candidate
    images_per_s: float
    p50_ms: float


@dataclass(frozen=True, slots=True)
class Lone:
    """One picture at a time on an idle CPU."""

    threads: int
    p50_ms: float


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was measured, simplest first, and what is chosen of it.

    refused: engine -> why it is not in `throughput`.
    """

    throughput: tuple[Throughput, ...]
    lone: tuple[Lone, ...]
    refused: dict[str, str]
    chosen: Throughput
    alone_threads: int
    seconds: float

    def settings(self) -> dict[str, str]:
        """The settings file's lines."""
        best = self.chosen.candidate
        return {
            "FCN_ENGINE": best.engine,
            "FCN_INSTANCES": str(best.instances),
            "FCN_INTRA_OP_THREADS": str(best.threads),
            "FCN_ALONE_THREADS": str(self.alone_threads),
            "FCN_MAX_BATCH": str(best.batch),
        }


def tune(
    path: Path,
    *,
    size: tuple[int, int],
    seconds: float,
    cores: int,
    engines: Sequence[str] | None = None,
    progress: Progress = lambda share, what: None,
    clock: Clock = time.perf_counter,
) -> Tuning:
    """Measures on this machine's CPU for about `seconds`, opening the file included.

    size: (height, width) the model takes. engines: None for all that are installed.

    Raises: ModelLoadError when ONNX Runtime cannot serve the file.
    """
    started = clock()
    todo = candidates(cores, installed_engines() if engines is None else engines)
    refused: dict[str, str] = {}
    runs: dict[Candidate, list[tuple[float, list[float]]]] = {}
    limit = started + seconds * _SHARE_OF_THROUGHPUT
    steps = _PASSES * len(todo)
    order = [*todo, *reversed(todo)]
    for index, candidate in enumerate(order):
        if candidate.engine in refused or (candidate in runs and clock() >= limit):
            continue
        progress((clock() - started) / seconds, describe(candidate))
        allowed = max(0.0, (limit - clock()) / (steps - index))
        end = clock() + allowed
        try:
            network = _open(path, candidate.engine, candidate.instances, candidate.threads)
        except ModelLoadError as error:
            if candidate.engine != "openvino":
                raise
            refused[candidate.engine] = str(error)
            continue
        batch = np.zeros((candidate.batch, *size, 3), np.uint8)
        runs.setdefault(candidate, []).append(_throughput(network, batch, end, clock))
    throughput = tuple(
        Throughput(
            candidate,
            round(images_per_s, 2),
            round(statistics.median(t for _, times in runs[candidate] for t in times) * 1e3, 2),
        )
        for candidate, images_per_s in steadied(
            {candidate: [rate for rate, _ in found] for candidate, found in runs.items()}
        ).items()
    )
    chosen = choose(throughput)
    lone = []
    counts = thread_counts(cores)
    for index, threads in enumerate(counts):
        progress((clock() - started) / seconds, f"one picture alone on {threads} threads")
        left = started + seconds - clock()
        end = clock() + max(0.0, left / (len(counts) - index))
        network = _open(path, chosen.candidate.engine, 1, threads)
        _, times = _throughput(network, np.zeros((1, *size, 3), np.uint8), end, clock)
        lone.append(Lone(threads, round(statistics.median(times) * 1e3, 2)))
    progress(1.0, "done")
    alone_threads = choose_alone(lone, chosen.candidate.threads)
    return Tuning(throughput, tuple(lone), refused, chosen, alone_threads, clock() - started)


def installed_engines() -> tuple[str, ...]:
    found = importlib.util.find_spec("openvino") is not None
    return ("onnxruntime", "openvino") if found else ("onnxruntime",)


def candidates(cores: int, engines: Sequence[str]) -> list[Candidate]:
    """Simplest first: ONNX Runtime before OpenVINO, one picture before several, few threads."""
    return [
        Candidate(engine, plan(cores, threads=threads).instances, threads, batch)
        for engine in engines
        for batch in BATCHES
        for threads in thread_counts(cores)
    ]


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4 ... and all cores."""
    return sorted({2**i for i in range(cores.bit_length()) if 2**i <= cores} | {cores})


def steadied(rates: dict[Candidate, list[float]]) -> dict[Candidate, float]:
    """Images per second of each candidate, measured in turns, less the machine's ups and downs: the
    median of its shares of the turns' means. The last turn need not be complete."""
    turns = range(min(map(len, rates.values())))
    means = [statistics.mean(found[turn] for found in rates.values()) for turn in turns]
    usual = statistics.mean(means)
    return {
        candidate: usual * statistics.median(found[turn] / means[turn] for turn in turns)
        for candidate, found in rates.items()
    }


def choose(measured: Sequence[Throughput]) -> Throughput:
    """The first that comes close to the best; of batches only what is worth their wait."""
    single = max((m.images_per_s for m in measured if m.candidate.batch == 1), default=0.0)
    worth = [
        m for m in measured if m.candidate.batch == 1 or m.images_per_s >= WORTH_A_BATCH * single
    ]
    best = max(found.images_per_s for found in worth)
    return next(found for found in worth if found.images_per_s >= CLOSE * best)


def choose_alone(lone: Sequence[Lone], threads: int) -> int:
    """Threads of a lone picture, where the others have `threads`."""
    fastest = min(lone, key=lambda found: found.p50_ms)
    usual = next((found for found in lone if found.threads == threads), lone[0])
    return fastest.threads if fastest.p50_ms <= WORTH_A_COPY * usual.p50_ms else threads


def describe(candidate: Candidate) -> str:
    return (
        f"{candidate.engine}, {candidate.instances} at once on {candidate.threads} threads, "
        f"{candidate.batch} pictures each"
    )


def _open(path: Path, engine: str, instances: int, threads: int) -> Network:
    """Without a copy for lone pictures: those are measured as instances."""
    layout = Plan(instances, threads, alone_threads=threads)
    return open_network(path, provider="cpu", engine=engine, plan=layout)


def _throughput(
    network: Network, batch: npt.NDArray[np.uint8], end: float, clock: Clock
) -> tuple[float, list[float]]:
    """Images per second over all instances, and the seconds of each inference.

    Every instance runs once to warm up, once at least, and else until `end`.
    """
    times: list[float] = []
    errors: list[Exception] = []

    def loop(instance: Instance) -> None:
        try:
            while True:
                began = clock()
                instance.run(batch)
                times.append(clock() - began)
                if clock() >= end:
                    return
        except Exception as error:
            errors.append(error)

    shared = [instance for instance in network.instances if not instance.full_device]
    for instance in shared:
        instance.run(batch)
    started = clock()
    threads = [threading.Thread(target=loop, args=(instance,)) for instance in shared]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise ModelLoadError(
            f"model {network.contract.model_name} fails on {batch.shape[1]}x{batch.shape[2]} "
            f"pictures, {len(batch)} at once: choose another --size"
        ) from errors[0]
    return len(times) * len(batch) / (clock() - started), times
