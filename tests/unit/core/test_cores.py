from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.core.engines.cores import (
    Plan,
    available_cores,
    cpu_flags,
    multiplies_int8,
    plan,
)


@pytest.fixture(autouse=True)
def machine_of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def v1(folder: Path, quota: str, period: str = "100000") -> None:
    (folder / "cpu").mkdir()
    (folder / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (folder / "cpu" / "cpu.cfs_period_us").write_text(period + "\n")


@pytest.mark.parametrize(
    ("cpu_max", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),  # 1.5 cores: two threads use them fully
        ("1000 100000", 1),
        ("9900000 100000", 8),
        ("garbage", 8),
        ("100000 0", 8),
    ],
)
def test_the_quota_of_cgroup_2_counts(tmp_path: Path, cpu_max: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(cpu_max + "\n")
    assert available_cores(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("300000", 3), ("1", 1)])
def test_the_quota_of_cgroup_1_counts(tmp_path: Path, quota: str, cores: int) -> None:
    v1(tmp_path, quota)
    assert available_cores(tmp_path) == cores


def test_without_a_cgroup_the_affinity_counts(tmp_path: Path) -> None:
    assert available_cores(tmp_path) == 8


def test_a_system_without_affinity_gives_its_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores(tmp_path) == 1


@pytest.mark.parametrize(
    ("cores", "given", "wanted"),
    [
        (1, {}, Plan(1, 1, 1)),
        (2, {}, Plan(2, 1, 2)),
        (8, {}, Plan(8, 1, 8)),
        (12, {}, Plan(6, 2, 12)),
        (64, {}, Plan(8, 8, 64)),
        (6, {"instances": 2}, Plan(2, 3, 6)),
        (6, {"threads": 2}, Plan(3, 2, 6)),
        (2, {"threads": 8}, Plan(1, 8, 2)),
        (2, {"instances": 8}, Plan(8, 1, 2)),
        (4, {"instances": 1, "threads": 2, "alone_threads": 1}, Plan(1, 2, 1)),
    ],
)
def test_cores_are_divided(cores: int, given: dict[str, int], wanted: Plan) -> None:
    assert plan(cores, **given) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512_vnni fma\n", True),
        ("flags : fpu avx2 avx_vnni\n", True),
        ("flags : fpu avx2 avx512f\n", False),
        ("Features : fp asimd asimddp\n", True),
        ("model name : a CPU with avx_vnni in its name\n", False),
    ],
)
def test_int8_instructions_are_read_off_the_flags(tmp_path: Path, text: str, wanted: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert multiplies_int8(cpu_flags(tmp_path / "cpuinfo")) is wanted


def test_a_system_that_does_not_say_has_no_int8_instructions(tmp_path: Path) -> None:
    assert not multiplies_int8(cpu_flags(tmp_path / "cpuinfo"))
