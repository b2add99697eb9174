from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.precision import uses_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("flags : fpu avx512f avx512_bf16\n", True),
        ("flags : fpu amx_bf16\n", True),
        ("Features : asimd bf16\n", True),
        ("flags : fpu avx2\n", False),
        ("model name : bf16\n", False),
    ],
)
def test_auto_follows_the_cpu(tmp_path: Path, text: str, wanted: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert uses_bf16("auto", CPU, tmp_path / "cpuinfo") is wanted
    assert uses_bf16("bf16", CPU, tmp_path / "cpuinfo")
    assert not uses_bf16("fp32", CPU, tmp_path / "cpuinfo")


def test_a_system_that_does_not_say_trains_in_fp32(tmp_path: Path) -> None:
    assert not uses_bf16("auto", CPU, tmp_path / "cpuinfo")
