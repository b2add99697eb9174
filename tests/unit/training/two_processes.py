"""Runs for test_distributed.py, in two processes under torchrun: `two_processes.py FOLDER DATA`.

Each scenario is one that a single process runs too; results are checkpoints and JSON in FOLDER.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.distributed.distributed_c10d import _set_pg_timeout

from cli.main import main
from tests.unit.training.recipes import PLAIN, changed, raw_recipe
from training import distributed
from training.config import ConfigError, TrainConfig, parse_config
from training.datasets import open_dataset
from training.distributed import DistributedError, World, init_distributed
from training.evaluation.evaluate import evaluate
from training.evaluation.predictors import NetworkPredictor
from training.train import Trainer, train

AVERAGED = {**PLAIN, "optimizer__weight_decay": 1e-4, "schedule__ema_decay": 0.5}
RECIPES: dict[str, dict[str, Any]] = {
    "mean": AVERAGED,  # with class weights and Dice
    "uneven": {**AVERAGED, "schedule__batch_size": 3},
    "accumulated": {
        **AVERAGED,
        "schedule__batch_size": 2,
        "schedule__accumulate": 3,
        "loss__dice": 0.0,
        "activation_checkpointing": True,
    },
    "sum": {
        **AVERAGED,
        "loss": {"reduction": "sum"},
        "optimizer__head_lr": 1e-5,
        "optimizer__backbone_lr": 1e-5,
    },
}
NORMED: dict[str, Any] = {"schedule__norm_images": 5}  # MobileNetV1 with dropout


def config(data: Path, changes: dict[str, Any]) -> TrainConfig:
    return parse_config(changed(raw_recipe(data), changes), "two world")


def run(folder: Path, data: Path, world: World) -> None:
    for name, changes in RECIPES.items():
        done = train(config(data, changes), folder / name, world=world)
    # The last of them on every image, each once: 3 images, 2 processes.
    split = open_dataset("folder", data, "test")
    confusion = evaluate(NetworkPredictor(done.build_network()), split, world=world)
    if world.is_main:
        (folder / "confusion.json").write_text(json.dumps(confusion.counts.tolist()))


def run_together(folder: Path, data: Path, world: World) -> None:
    """Do what only several processes can show."""
    normed = config(data, NORMED)
    train(normed, folder / "straight", world=world)
    train(normed, folder / "parts", stop_after=4, world=world)
    trainer = Trainer(normed, folder / "parts", resume=True, world=world)
    trainer.run()
    own = trainer.learner.network.state_dict()
    same = all(
        len({value.numpy().tobytes() for value in world.gather(tensor.contiguous())}) == 1
        for tensor in own.values()
    )
    refusal = ""
    try:
        train(config(data, {"schedule__batch_size": 1}), folder / "refused", world=world)
    except ConfigError as error:
        refusal = str(error)
    if world.is_main:
        (folder / "together.json").write_text(json.dumps({"same": same, "refusal": refusal}))


def scenarios() -> None:
    """Do all in one group: torch cannot join the same processes again."""
    folder, data = map(Path, sys.argv[1:])
    try:
        with init_distributed() as world:
            run(folder, data, world)
            run_together(folder, data, world)
            run_commands(folder, data, world)
            be_silent(folder, world)
    except DistributedError as error:
        if "2000ms" not in str(error):  # which only `be_silent` asks for
            raise
        (folder / "silence.txt").write_text(str(error))


def run_commands(folder: Path, data: Path, world: World) -> None:
    """`fcn train` and `fcn evaluate` in both processes; what each says is kept.

    They get the processes that are joined already.
    """
    recipe, run_dir = folder / "recipe.yaml", folder / "commands"
    raw = changed(raw_recipe(data), {"schedule__epochs": 1})
    own = folder / f"recipe{world.rank}.yaml"  # both write the same, and neither a half of it
    own.write_text(yaml.safe_dump(raw))
    own.replace(recipe)
    commands = {
        "train": ["train", str(recipe), "--run-dir", str(run_dir)],
        "evaluate": ["evaluate", str(run_dir / "last.pt"), "--data-root", str(data), "--json"],
    }
    for name, words in commands.items():
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            patch.setattr(distributed, "init_distributed", lambda: nullcontext(world))
            code = main(words)
        said = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
        (folder / f"{name}{world.rank}.json").write_text(json.dumps(said))


def be_silent(folder: Path, world: World) -> None:
    """The second process no longer answers; the first one must not wait for ever."""
    world.barrier()
    # Not above: on a busy machine processes wait longer for each other.
    _set_pg_timeout(timedelta(seconds=2))
    if not world.is_main:
        while not (folder / "silence.txt").exists():
            time.sleep(0.1)
        os._exit(0)
    world.sum(torch.ones(()))


if __name__ == "__main__":
    scenarios()
