"""Measures which engine, precision, and how many inferences, threads and images at once, suit this
machine.

Every way is tried through the server's own segmenter: decode, network and encode, as it will be.
`fcn tune` writes the answer as a settings file.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from service.config import SegmenterConfig
from service.core.engines.choice import BF16_FLAGS, INT8_FILE, open_network
from service.core.engines.cores import multiplies_int8, plan
from service.core.segmenter import Segmenter
from service.core.types import Observer, SegmentOptions
from service.errors import ModelLoadError, ServiceError
from service.local import unbounded

Progress = Callable[[float, str], None]
"""Is told the share of the time that has gone by, 0..1, and what is measured now."""

BATCHES: Final = (1, 4)
"""Images in one inference of ONNX Runtime; OpenVINO runs image by image."""
IN_FLIGHT: Final = 8
"""Requests at once, where twice the instances are not more."""
NEAR_BEST: Final = 0.97
"""Share of the best images/s: what comes this close and is simpler is chosen."""
MIN_SPEEDUP_FOR_BATCH: Final = 1.08
"""Factor over the images/s of single images: in a batch each waits for the others, so less is no
gain. On a quiet machine batches of 4 gained nothing, on a busy one by chance 5 % (bench/LOG.md)."""
MIN_SPEEDUP_FOR_COPY: Final = 1 / 0.9
"""Factor by which a lone image must be faster for a second copy of the model in memory."""
_WORTH_A_CLOSE_LOOK = 0.8  # of the fastest: threads and batches gave no more than the rest
_SHARES = 0.4, 0.8  # of the time: when the first and the second round end


@dataclass(frozen=True, slots=True)
class Candidate:
    """Describes a way to run the network. batch: images in one inference."""

    engine: str
    precision: str
    instances: int
    threads: int
    batch: int


@dataclass(frozen=True, slots=True)
class Throughput:
    """Holds what was measured with all cores busy. p50_ms: of a request, its wait included."""

    candidate: Candidate
    images_per_s: float
    p50_ms: float


@dataclass(frozen=True, slots=True)
class SingleLatency:
    """Holds what was measured with one request at a time on an idle CPU."""

    threads: int
    p50_ms: float


@dataclass(frozen=True, slots=True)
class Tuning:
    """Holds what was measured, simplest first, and what is chosen of it.

    single: one image at a time. refused: "engine precision" -> why it is not in `throughput`.
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
            "FCN_PRECISION": best.precision,
            "FCN_INSTANCES": str(best.instances),
            "FCN_INTRA_OP_THREADS": str(best.threads),
            "FCN_ALONE_THREADS": str(self.alone_threads),
            "FCN_MAX_BATCH": str(best.batch),
        }


Measure = Callable[[SegmenterConfig, int, float], tuple[float, list[float]]]
"""Serves with a config, so many requests at once, until a moment of the clock; returns how long it
took and the seconds of each request. Raises: ModelLoadError."""


def tune(
    measure: Measure,
    ways: Sequence[tuple[str, str]],
    *,
    seconds: float,
    cores: int,
    config: SegmenterConfig | None = None,
    progress: Progress = lambda share, what: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Tuning:
    """Measures on this machine's CPU for about `seconds`, each start included.

    First every way with a thread for each inference, then the fast ones with other threads and
    batches, there and back, since a shared machine is faster at one moment than at the next; then
    one request at a time. ways: (engine, precision), simplest first. config: of the server.

    Raises: ModelLoadError when none of them serves.
    """
    started = clock()
    base = config or SegmenterConfig()
    refused: dict[str, str] = {}

    def run(todo: Sequence[Candidate], share: float) -> dict[Candidate, Throughput]:
        runs: dict[Candidate, list[tuple[float, list[float]]]] = {}
        for index, way in enumerate(todo):
            name = f"{way.engine} {way.precision}"
            left = started + share * seconds - clock()
            if name in refused or (way in runs and left <= 0):
                continue
            progress(min(1.0, (clock() - started) / seconds), describe(way))
            end = clock() + max(0.0, left / (len(todo) - index))
            try:
                found = measure(configured(base, way), max(IN_FLIGHT, 2 * way.instances), end)
            except ModelLoadError as error:
                refused[name] = str(error)
                continue
            runs.setdefault(way, []).append(found)
        return {way: _throughput(way, found) for way, found in runs.items()}

    first = run([candidate(cores, way, 1, 1) for way in ways], _SHARES[0])
    if not first:
        raise ModelLoadError("; ".join(refused.values()))
    enough = _WORTH_A_CLOSE_LOOK * max(row.images_per_s for row in first.values())
    close = [
        candidate(cores, (way.engine, way.precision), threads, batch)
        for way, row in first.items()
        if row.images_per_s >= enough
        for batch in (BATCHES if way.engine == "onnxruntime" else BATCHES[:1])
        for threads in thread_counts(cores)
    ]
    second = run([*close, *reversed(close)], _SHARES[1])
    chosen = choose(list(second.values()))
    counts = [count for count in thread_counts(cores) if count >= chosen.candidate.threads]
    single = []
    for index, threads in enumerate(counts):
        progress(min(1.0, (clock() - started) / seconds), f"one image alone on {threads} threads")
        end = clock() + max(0.0, (started + seconds - clock()) / (len(counts) - index))
        _, times = measure(configured(base, chosen.candidate, threads), 1, end)
        single.append(SingleLatency(threads, round(statistics.median(times) * 1e3, 2)))
    progress(1.0, "done")
    return Tuning(
        tuple({**first, **second}.values()),
        tuple(single),
        refused,
        chosen,
        choose_alone_threads(single, chosen.candidate.threads),
        clock() - started,
    )


def ways_of(path: Path, engines: Sequence[str], flags: frozenset[str]) -> list[tuple[str, str]]:
    """Lists the engines and precisions that a model file and a CPU allow, simplest first.

    flags: what the CPU can, see `cpu_flags`.
    """
    int8 = path.with_name(INT8_FILE).is_file() and multiplies_int8(flags)
    bf16 = not flags.isdisjoint(BF16_FLAGS)
    return [
        (engine, precision)
        for engine in engines
        for precision, there in (
            ("fp32", True),
            ("bf16", bf16 and engine == "openvino"),
            ("int8", int8),
        )
        if there
    ]


def installed_engines() -> tuple[str, ...]:
    found = importlib.util.find_spec("openvino") is not None
    return ("onnxruntime", "openvino") if found else ("onnxruntime",)


def candidate(cores: int, way: tuple[str, str], threads: int, batch: int) -> Candidate:
    return Candidate(*way, plan(cores, threads=threads).instances, threads, batch)


def thread_counts(cores: int) -> list[int]:
    """Returns 1, 2, 4, 8 and all cores, as far as there are so many."""
    return sorted({count for count in (1, 2, 4, 8) if count <= cores} | {cores})


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


def describe(way: Candidate) -> str:
    return (
        f"{way.engine} {way.precision}, {way.instances} at once on {way.threads} threads, "
        f"{way.batch} images each"
    )


def configured(base: SegmenterConfig, way: Candidate, alone: int | None = None) -> SegmenterConfig:
    """Sets what the candidate says. alone: threads of a lone image; None for as many as others
    have, so that there is no copy for it."""
    return dataclasses.replace(
        base,
        provider="cpu",
        engine=way.engine,
        precision=way.precision,
        instances=way.instances,
        intra_op_threads=way.threads,
        alone_threads=alone or way.threads,
        max_batch=way.batch,
    )


def through_segmenter(
    path: Path,
    model: str,
    image: bytes,
    size: tuple[int, int],
    cores: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Measure:
    """Returns a `Measure` of the model file at `path`, which takes `image` for every request.

    model: its name. size: (height, width) of the tensor that the image makes.
    """

    def measure(config: SegmenterConfig, n: int, end: float) -> tuple[float, list[float]]:
        with tempfile.TemporaryDirectory(prefix="fcn-tune-") as folder:
            version = Path(folder) / model / "1"
            version.mkdir(parents=True)
            (version / "model.onnx").symlink_to(path.resolve())
            config = dataclasses.replace(
                unbounded(config),
                model_repository=Path(folder),
                default_model=None,
                model_poll_s=0.0,
                warm_up_sizes=(size,),
            )
            segmenter = Segmenter(
                config,
                # The files of other precisions lie beside the real one.
                open_network=lambda _: open_network(config, cores, Observer(), path),
            )
            try:
                return asyncio.run(_serve(segmenter, image, n, end, clock))
            except ModelLoadError:
                raise
            except ServiceError as error:
                raise ModelLoadError(
                    f"model {model} fails on {size[0]}x{size[1]} images, {config.max_batch} in "
                    f"one inference: {error}: choose another --size"
                ) from error

    return measure


async def _serve(
    segmenter: Segmenter, image: bytes, in_flight: int, end: float, clock: Callable[[], float]
) -> tuple[float, list[float]]:
    """Keeps so many requests in flight until `end`, each at least one after a first to warm up.

    Returns the seconds it took and those of each request. Raises: ServiceError.
    """
    times: list[float] = []
    ask = partial(segmenter.segment, image, SegmentOptions())

    async def loop() -> None:
        while True:
            began = clock()
            await ask()
            times.append(clock() - began)
            if clock() >= end:
                return

    await segmenter.start()
    try:
        await asyncio.gather(*(ask() for _ in range(in_flight)))
        began = clock()
        await asyncio.gather(*(loop() for _ in range(in_flight)))
        return clock() - began, times
    finally:
        await segmenter.aclose()


def _throughput(way: Candidate, runs: Sequence[tuple[float, list[float]]]) -> Throughput:
    times = [one for _, found in runs for one in found]
    images_per_s = len(times) / sum(took for took, _ in runs)
    return Throughput(way, round(images_per_s, 2), round(statistics.median(times) * 1e3, 2))
