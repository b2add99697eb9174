"""Kills a training again and again: it ends where an undisturbed one ends, to the bit."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import yaml

from tests.serving import ROOT, environment
from tests.unit.training.recipes import changed, equal, raw_recipe
from training.checkpoint import load_checkpoint

KILLS = int(os.environ.get("TRAIN_KILLS", "1"))
"""Kills of `fcn train`; docs/reliability.md says how many were tried."""


def test_a_killed_training_ends_as_an_undisturbed_one(tmp_path: Path, streets: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(changed(raw_recipe(streets), {"schedule__epochs": 12})))

    def words(name: str) -> list[str]:
        run = tmp_path / name
        resume = ["--resume"] if (run / "last.pt").exists() else []
        called = [sys.executable, "-m", "cli.main", "train", str(recipe), "--run", str(run)]
        return [*called, *resume]

    def begin(name: str) -> subprocess.Popen[bytes]:
        quiet = subprocess.DEVNULL
        return subprocess.Popen(
            words(name), cwd=ROOT, env=environment(), stdout=quiet, stderr=quiet
        )

    began_s = time.monotonic()
    assert begin("whole").wait(400) == 0
    takes_s = time.monotonic() - began_s
    chance = random.Random(14)
    killed = tries = 0
    while killed < KILLS and tries < 10 * KILLS:
        tries += 1
        with begin("killed") as process:
            try:
                # It must come further than its start, or it would never end.
                process.wait(chance.uniform(0.3, 1.0) * takes_s)
                assert process.returncode == 0
                (tmp_path / "killed").rename(tmp_path / f"ended{tries}")
            except subprocess.TimeoutExpired:
                process.kill()
                killed += 1
    assert killed == KILLS
    assert subprocess.run(words("killed"), cwd=ROOT, env=environment(), timeout=400).returncode == 0
    whole = load_checkpoint(tmp_path / "whole" / "last.pt")
    for run in (tmp_path / "killed", *tmp_path.glob("ended*")):
        found = load_checkpoint(run / "last.pt")
        assert found.iteration == whole.iteration
        assert equal(found.weights, whole.weights)
        assert equal(found.optimizer, whole.optimizer)
        assert not list(run.rglob("*.tmp"))
        names = {path.name for path in (tmp_path / "whole").iterdir()}
        assert {path.name for path in run.iterdir()} == names
