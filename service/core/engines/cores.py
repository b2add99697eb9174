"""Counts the cores this process may use, tells what they can, and shares them among threads."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_CPUINFO = Path("/proc/cpuinfo")
_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
_MAX_INSTANCES = 8
"""Limit of the default: each holds the network's intermediate results of one batch."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Divides the cores among inferences.

    instances: inferences at once. threads: of each. alone_threads: of the one that has an idle
    device to itself; no more than `threads` means that it is an inference like any other.
    """

    instances: int
    threads: int
    alone_threads: int


def plan(
    cores: int,
    *,
    instances: int | None = None,
    threads: int | None = None,
    alone_threads: int | None = None,
) -> Plan:
    """Takes what is given, and chooses the rest so that no more threads compute than there are
    cores.

    One thread per inference and an inference per core gives the most images per second, and all
    cores for a lone image the shortest answer (bench/LOG.md).
    """
    if threads is None:
        threads = max(1, cores // instances if instances else math.ceil(cores / _MAX_INSTANCES))
    if instances is None:
        instances = max(1, cores // threads)
    return Plan(instances, threads, cores if alone_threads is None else alone_threads)


def threads_within(cores: float, *, with_gpu: bool) -> dict[str, int]:
    """Names the settings that keep a segmenter to its share of a machine's cores, at least one."""
    whole = max(1, int(cores))
    if with_gpu:
        return {"pool_workers": whole}
    shares = plan(whole)
    return {
        "pool_workers": whole,
        "instances": shares.instances,
        "intra_op_threads": shares.threads,
        "alone_threads": shares.alone_threads,
    }


def available_cores(cgroup: Path = _CGROUP) -> int:
    """Returns 1 or more. In a container with `--cpus 2` on a 64-core host this is 2."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # not on Linux
        cores = os.cpu_count() or 1
    quota = cpu_quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_flags(cpuinfo: Path = _CPUINFO) -> frozenset[str]:
    """Reads what the first CPU can, in Linux's words; empty where the system does not say."""
    return frozenset((_cpu_line(cpuinfo, "flags") or _cpu_line(cpuinfo, "Features")).split())


def cpu_name(cpuinfo: Path = _CPUINFO) -> str:
    """Names the processor and all it can: what was compiled for one need not run on another."""
    return f"{cpu_model(cpuinfo)} {' '.join(sorted(cpu_flags(cpuinfo)))}"


def cpu_model(cpuinfo: Path = _CPUINFO) -> str:
    """Names the processor as its maker does; "" where the system does not say."""
    return _cpu_line(cpuinfo, "model name")


def multiplies_int8(flags: frozenset[str]) -> bool:
    """Tells whether the CPU sums products of 8-bit numbers in one instruction (VNNI, AMX, Arm's dot
    product), exactly. Without it 8-bit networks gain little, and x86 saturates some of the sums
    (microsoft/onnxruntime#28415). flags: see `cpu_flags`."""
    return not _INT8_FLAGS.isdisjoint(flags)


def _cpu_line(cpuinfo: Path, wanted: str) -> str:
    """Returns what the first line of that name says; "" where there is none."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == wanted:
            return value.strip()
    return ""


def start_thread(name: str, work: Callable[[], None], *, nice: int = 0) -> threading.Thread:
    """Starts a daemon thread: work that hangs must not keep a stopped server alive.

    nice: see `yield_to_event_loop`; 0: the thread does not stand back.
    """

    def run() -> None:
        if nice:
            yield_to_event_loop(nice)
        work()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


def yield_to_event_loop(nice: int) -> None:
    """Lowers the calling thread's priority: where cores are short the event loop goes first, so
    that whoever is to be refused, or is answered, need not wait for the end of a time slice.

    nice: added to what the thread has. On Linux a thread has its own; elsewhere nothing happens.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):  # forbidden in some sandboxes
            os.setpriority(
                os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + nice)
            )


def cpu_quota(cgroup: Path = _CGROUP) -> float | None:
    """Reads the cores allowed by cgroup v2 (`cpu.max`: "quota period") or v1; None: unlimited."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max": no limit
        return None
    return cores if cores > 0 else None  # v1 writes -1 for no limit
