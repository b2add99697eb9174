"""Chooses the precision of training where the config leaves it open."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

Precision = Literal["auto", "bf16", "fp32"]

_CPUINFO = Path("/proc/cpuinfo")
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def uses_bf16(precision: Precision, device: torch.device, cpuinfo: Path = _CPUINFO) -> bool:
    """Choose bf16 for `auto` where the device has arithmetic for it: on a CPU without, bf16 took 16
    times as long as fp32 (bench/LOG.md)."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:  # the system does not say
        return False
    for line in lines:
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return not _BF16_FLAGS.isdisjoint(flags.split())
    return False
