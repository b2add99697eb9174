"""Measures which engine, and how many inferences, threads and images at once, suit this machine.

`fcn tune` writes the answer as a settings file.
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

from service.config import SegmenterConfig
from service.core.engines.choice import open_network
from service.core.engines.cores import plan
from service.core.types import Clock, Instance, Network, Observer
from service.errors import ModelLoadError

Progress = Callable[[float, str], None]
"""Is told the share of the time that has gone by, 0..1, and what is measured now."""

BATCHES: Final = (1, 4)
NEAR_BEST: Final = 0.97
"""Share of the best images/s: what comes this close and is simpler is chosen."""
MIN_SPEEDUP_FOR_BATCH: Final = 1.08
"""Factor over the images/s of single images: in a batch each waits for the others, so less is no
gain. On a quiet machine batches of 4 gained nothing, on a busy one by chance 5 % (bench/LOG.md)."""
MIN_SPEEDUP_FOR_COPY: Final = 1 / 0.9
"""Factor by which a lone image must be faster for a second copy of the model in memory."""
_SHARE_OF_THROUGHPUT = 0.75
_PASSES = 4  # there and back: a shared machine is faster at one moment than at the next


@dataclass(frozen=True, slots=True)
class Candidate:
    """Describes a way to run the network. batch: images in one inference."""

    engine: str
    instances: int
    threads: int
    batch: int


@dataclass(frozen=True, slots=True)
class Throughput:
    """Holds what was measured with every instance busy. p50_ms: of one inference of a batch."""

    candidate: Candidate
    images_per_s: float
    p50_ms: float


@dataclass(frozen=True, slots=True)
class SingleLatency:
    """Holds what was measured with one image at a time on an idle CPU."""

    threads: int
    p50_ms: float


@dataclass(frozen=True, slots=True)
class Tuning:
    """Holds what was measured, simplest first, and what is chosen of it.

    single: one image at a time. refused: engine -> why it is not in `throughput`.
    """

    throughput: tuple[Throughput, ...]
    single: tuple[SingleLatency, ...]
    refused: dict[str, str]
    chosen: Throughput
    alone_threads: int
    seconds: float

    def settings(self) -> dict[str, str]:
        """Returns the settings file's lines."""
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
        for candidate, images_per_s in drift_corrected(
            {candidate: [rate for rate, _ in found] for candidate, found in runs.items()}
        ).items()
    )
    chosen = choose(throughput)
    single = []
    counts = thread_counts(cores)
    for index, threads in enumerate(counts):
        progress((clock() - started) / seconds, f"one image alone on {threads} threads")
        left = started + seconds - clock()
        end = clock() + max(0.0, left / (len(counts) - index))
        network = _open(path, chosen.candidate.engine, 1, threads)
        _, times = _throughput(network, np.zeros((1, *size, 3), np.uint8), end, clock)
        single.append(SingleLatency(threads, round(statistics.median(times) * 1e3, 2)))
    progress(1.0, "done")
    alone_threads = choose_alone_threads(single, chosen.candidate.threads)
    return Tuning(throughput, tuple(single), refused, chosen, alone_threads, clock() - started)


def installed_engines() -> tuple[str, ...]:
    found = importlib.util.find_spec("openvino") is not None
    return ("onnxruntime", "openvino") if found else ("onnxruntime",)


def candidates(cores: int, engines: Sequence[str]) -> list[Candidate]:
    """Lists them simplest first: ONNX Runtime first, one image before several, few threads."""
    return [
        Candidate(engine, plan(cores, threads=threads).instances, threads, batch)
        for engine in engines
        for batch in BATCHES
        for threads in thread_counts(cores)
    ]


def thread_counts(cores: int) -> list[int]:
    """Returns 1, 2, 4 ... and all cores."""
    return sorted({2**i for i in range(cores.bit_length()) if 2**i <= cores} | {cores})


def drift_corrected(rates: dict[Candidate, list[float]]) -> dict[Candidate, float]:
    """Corrects images per second, measured in turns, for the machine's ups and downs.

    A candidate's rate is the median of its shares of the turns' means. The last turn need not be
    complete.
    """
    turns = range(min(map(len, rates.values())))
    means = [statistics.mean(found[turn] for found in rates.values()) for turn in turns]
    usual = statistics.mean(means)
    return {
        candidate: usual * statistics.median(found[turn] / means[turn] for turn in turns)
        for candidate, found in rates.items()
    }


def choose(measured: Sequence[Throughput]) -> Throughput:
    """Chooses the first that comes close to the best; of batches only what is worth their wait."""
    single = max((m.images_per_s for m in measured if m.candidate.batch == 1), default=0.0)
    worth = [
        m
        for m in measured
        if m.candidate.batch == 1 or m.images_per_s >= MIN_SPEEDUP_FOR_BATCH * single
    ]
    best = max(found.images_per_s for found in worth)
    return next(found for found in worth if found.images_per_s >= NEAR_BEST * best)


def choose_alone_threads(single: Sequence[SingleLatency], threads: int) -> int:
    """Chooses the threads of a lone image, where the others have `threads`."""
    fastest = min(single, key=lambda found: found.p50_ms)
    usual = next((found for found in single if found.threads == threads), single[0])
    worth_it = fastest.p50_ms * MIN_SPEEDUP_FOR_COPY <= usual.p50_ms
    return fastest.threads if worth_it else threads


def describe(candidate: Candidate) -> str:
    return (
        f"{candidate.engine}, {candidate.instances} at once on {candidate.threads} threads, "
        f"{candidate.batch} images each"
    )


def _open(path: Path, engine: str, instances: int, threads: int) -> Network:
    """Opens it without a copy for lone images: those are measured as instances."""
    config = SegmenterConfig(
        provider="cpu",
        engine=engine,
        instances=instances,
        intra_op_threads=threads,
        alone_threads=threads,
    )
    return open_network(config, instances * threads, Observer(), path)


def _throughput(
    network: Network, batch: npt.NDArray[np.uint8], end: float, clock: Clock
) -> tuple[float, list[float]]:
    """Measures images per second over all instances, and the seconds of each inference.

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
            f"images, {len(batch)} at once: choose another --size"
        ) from errors[0]
    return len(times) * len(batch) / (clock() - started), times
