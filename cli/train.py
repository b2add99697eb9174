"""`fcn train` trains a network from a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "train a network from a recipe"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="YAML file, see training/configs")
    parser.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        action="extend",
        default=[],
        metavar="section.field=value",
        help="changes to the recipe, e.g. data.root=DIR schedule.epochs=2",
    )
    parser.add_argument(
        "--run",
        "--run-dir",  # torchrun takes the shorter one for one of its own
        dest="run_dir",  # `run` is the frame's
        type=Path,
        metavar="DIR",
        help="folder for checkpoints and logs (default: runs/<name>)",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the run's last.pt")


def run(args: argparse.Namespace) -> int:
    from training.config import load_config
    from training.distributed import init_distributed
    from training.evaluation.report import class_table
    from training.train import train

    config = load_config(args.recipe, args.overrides)
    run_dir = args.run_dir or Path("runs") / config.name
    with init_distributed() as world:
        checkpoint = train(config, run_dir, resume=args.resume, world=world)
    if not world.is_main:
        return 0
    if checkpoint.val_scores is not None:
        print(class_table(checkpoint.val_scores))
    print(f"{run_dir}/last.pt: iteration {checkpoint.iteration}")
    print(f"{run_dir}/best.pt: val mean IU {checkpoint.best_mean_iu:.4f}")
    return 0
