"""Several processes under torchrun compute what one does; a lost one ends the run."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.unit.training.test_train import assert_same_state
from tests.unit.training.two_processes import RECIPES, config
from training.checkpoint import load_checkpoint
from training.datasets import open_dataset
from training.distributed import SINGLE, World
from training.evaluation.evaluate import evaluate
from training.evaluation.predictors import NetworkPredictor
from training.train import train

ROOT = Path(__file__).resolve().parents[3]
WITHOUT_RATE = slice(0, 5)
"""The columns of log.csv before images_per_s."""


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine, one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*command, "--nproc-per-node", "2", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, streets: Path) -> Path:
    """The folder that two_processes.py leaves behind."""
    folder = tmp_path_factory.mktemp("two")
    script = Path(__file__).with_name("two_processes.py")
    done = torchrun(str(script), str(folder), str(streets))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_learn_what_one_does(
    both: Path, tmp_path: Path, streets: Path, name: str
) -> None:
    """Weights, average, optimiser, losses and validation."""
    alone = train(config(streets, RECIPES[name]), tmp_path)
    together = load_checkpoint(both / name / "last.pt")
    assert together.iteration == alone.iteration
    assert alone.ema is not None and together.ema is not None
    short = config(streets, {**RECIPES[name], "schedule__epochs": 1})
    begun = train(short, tmp_path / "begun", run_log=None)
    for mine, theirs in ((alone.weights, together.weights), (alone.ema, together.ema)):
        for key, value in mine.items():
            torch.testing.assert_close(theirs[key], value, rtol=1e-4, atol=1e-5)
    moved = [(begun.weights[k] - v).abs().max().item() for k, v in alone.weights.items()]
    assert max(moved) > 1e-3  # else closeness would say nothing
    for run in (both / name, tmp_path):
        assert (run / "best.pt").is_file()
    with (both / name / "log.csv").open() as two, (tmp_path / "log.csv").open() as one:
        for left, right in zip(list(csv.reader(two))[1:], list(csv.reader(one))[1:], strict=True):
            assert [float(cell) for cell in left[WITHOUT_RATE]] == pytest.approx(
                [float(cell) for cell in right[WITHOUT_RATE]], rel=1e-4
            )


def test_each_image_is_counted_once(both: Path, streets: Path) -> None:
    """Three images among two processes: the matrix is to the pixel that of one."""
    last = load_checkpoint(both / list(RECIPES)[-1] / "last.pt")
    split = open_dataset("folder", streets, "test")
    alone = evaluate(NetworkPredictor(last.build_network()), split, progress=False)
    assert json.loads((both / "confusion.json").read_text()) == alone.counts.tolist()


def test_resumed_is_the_same_to_the_bit_in_every_process(both: Path) -> None:
    """With dropout, which each process draws for itself, and norms."""
    straight = load_checkpoint(both / "straight" / "last.pt")
    parts = load_checkpoint(both / "parts" / "last.pt")
    assert len(straight.random_states) == 2
    assert not torch.equal(*straight.random_states)
    assert_same_state(straight, parts)
    together = json.loads((both / "together.json").read_text())
    assert together["same"]


def test_a_batch_that_cannot_be_divided(both: Path) -> None:
    refusal = json.loads((both / "together.json").read_text())["refusal"]
    assert refusal.startswith("a batch of 1 cannot be divided among 2 processes: raise schedule.")


def test_a_silent_process_is_not_waited_for_for_ever(both: Path) -> None:
    message = (both / "silence.txt").read_text()
    assert "another process of this run ended or has not answered for 600 s" in message
    assert "2000ms" in message


def test_the_commands_under_torchrun(both: Path) -> None:
    """One bar, one report, by the main process."""
    said = {
        (name, rank): json.loads((both / f"{name}{rank}.json").read_text())
        for name in ("train", "evaluate")
        for rank in (0, 1)
    }
    assert {answer["code"] for answer in said.values()} == {0}
    trained = said["train", 0]
    assert "last.pt: iteration 3" in trained["out"]
    assert "val mean IU" in trained["out"] and "3/3" in trained["err"]
    assert json.loads(said["evaluate", 0]["out"])["images"] == 3
    for name in ("train", "evaluate"):
        assert said[name, 1]["out"] == "" and "it/s" not in said[name, 1]["err"]


def test_a_damaged_image_ends_all_processes(both: Path, tmp_path: Path, streets: Path) -> None:
    """And costs no checkpoint."""
    data = tmp_path / "data"
    shutil.copytree(streets, data)
    last = both / "commands" / "last.pt"
    before = last.read_bytes()
    for path in (data / "test/images").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    failed = torchrun("-m", "cli.main", "evaluate", str(last), "--data-root", str(data))
    assert failed.returncode != 0
    assert "fcn: cannot read the image" in failed.stderr
    assert last.read_bytes() == before


def test_parts_follow_one_another_and_miss_nothing() -> None:
    items = list(range(7))
    for count in (1, 2, 3, 7, 9):
        parts = [World(rank, count).share(items) for rank in range(count)]
        assert sum(parts, []) == items
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_nothing_is_exchanged() -> None:
    own = torch.arange(3.0, requires_grad=True)
    assert SINGLE.sum_with_own_gradient(own) is own
    assert torch.equal(SINGLE.sum(own), own)
    assert SINGLE.gather(own) == [own]
    assert SINGLE.is_main
