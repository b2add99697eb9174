"""Counts the cores this process may use, and shares them among inferences on the CPU."""

from __future__ import annotations

import math
import os
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


def available_cores(cgroup: Path = _CGROUP) -> int:
    """Returns 1 or more. In a container with `--cpus 2` on a 64-core host this is 2."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # not on Linux
        cores = os.cpu_count() or 1
    quota = _quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def multiplies_int8(cpuinfo: Path = _CPUINFO) -> bool:
    """Tells whether the CPU sums products of 8-bit numbers in one instruction (VNNI, AMX, Arm's dot
    product), exactly. Without it 8-bit networks gain little, and x86 saturates some of the sums
    (microsoft/onnxruntime#28415). False where the system does not say."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return not _INT8_FLAGS.isdisjoint(flags.split())
    return False


def _quota(cgroup: Path) -> float | None:
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
