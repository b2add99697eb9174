"""A recipe may name any net of the paper: it trains, and its checkpoint holds the same net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.training.recipes import MakeConfig
from training.checkpoint import load_checkpoint
from training.train import train

ALEXNET = {"backbone": "alexnet", "variant": "32s", "fc6_channels": 8}


@pytest.mark.parametrize(
    "network",
    [ALEXNET, {"backbone": "googlenet", "variant": "16s", "pool4_scale": 0.01}],
    ids=lambda network: str(network["backbone"]),
)
def test_two_steps(tmp_path: Path, make_config: MakeConfig, network: dict[str, Any]) -> None:
    config = make_config(network=network, schedule__epochs=1)
    train(config, tmp_path, stop_after=2, run_log=None)
    saved = load_checkpoint(tmp_path / "last.pt")
    assert (saved.network, saved.iteration) == (config.network, 2)
    images = torch.rand(1, 3, 20, 30) * 255
    with torch.inference_mode():
        assert saved.build_network()(images).shape == (1, 4, 20, 30)
