"""The device: what it is, what its matrix units give at best, and how busy it is."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

_QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,memory.total"
_PERIOD_S = 0.05


def describe(provider: str) -> dict[str, Any]:
    """`device_name`, and of a GPU what nvidia-smi tells."""
    if provider == "cpu":
        return {"device_name": "cpu"}
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here: check the driver, or say --provider cpu")
    said: dict[str, Any] = {
        "device_name": torch.cuda.get_device_name(0),
        "cuda": torch.version.cuda,
    }
    said["multiprocessors"] = torch.cuda.get_device_properties(0).multi_processor_count
    values = _nvidia_smi(_QUERY)
    return said | dict(zip(_QUERY.split(","), values, strict=True)) if values else said


def clocks() -> dict[str, Any]:
    """Now, of a GPU; empty where they cannot be read."""
    fields = "clocks.sm,clocks.mem,temperature.gpu,power.draw"
    values = _nvidia_smi(fields)
    return dict(zip(fields.split(","), values, strict=True)) if values else {}


def matrix_peak(device: str, precision: str, side: int, seconds: float) -> float:
    """FLOP/s of the best of some products of two side x side matrices of random numbers.

    precision: "fp32" (without tensor cores), "tf32" or "fp16", which all sum in fp32.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    kind = torch.float16 if precision == "fp16" else torch.float32
    try:
        one, other = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
        torch.matmul(one, other)
        synchronize(device)
        best = float("inf")
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or best == float("inf"):
            begun = time.perf_counter()
            for _ in range(5):
                torch.matmul(one, other)
            synchronize(device)
            best = min(best, (time.perf_counter() - begun) / 5)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * side**3 / best


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


@dataclass(slots=True)
class Busy:
    """Shares of time in which the GPU ran something, each over the driver's last interval."""

    shares: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float | None:
        return round(sum(self.shares) / len(self.shares), 3) if self.shares else None


@contextmanager
def watching(provider: str) -> Iterator[Busy]:
    """Samples while the block runs, by pynvml, else by nvidia-smi; none on a CPU."""
    busy, stop = Busy(), threading.Event()
    read = None if provider == "cpu" else _utilisation()

    def sample() -> None:
        while read is not None and not stop.wait(_PERIOD_S):
            share = read()
            if share is not None:
                busy.shares.append(share)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield busy
    finally:
        stop.set()
        thread.join()


def _utilisation() -> Any:
    """A function that gives 0..1 or None."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetUtilizationRates(handle)
    except Exception:  # its exceptions share no base class with a missing module
        return _utilisation_said
    return lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100


def _utilisation_said() -> float | None:
    values = _nvidia_smi("utilization.gpu")
    try:
        return float(values[0].rstrip(" %")) / 100 if values else None
    except ValueError:
        return None


def _nvidia_smi(fields: str) -> list[str]:
    """Of the first GPU; empty where there is no such program or answer."""
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    line = next(iter(done.stdout.splitlines()), "")
    values = [value.strip() for value in line.split(",")]
    return values if len(values) == fields.count(",") + 1 else []
