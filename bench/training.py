"""Measures training images per second: our trainer, a plain loop, and what the loader alone gives.

    python -m bench.training --network mobilenet_v1 --precision fp32

The plain loop is written as torchvision's `references/segmentation` does it: a Dataset of PIL
images, random resize, flip and crop, a DataLoader, `CrossEntropyLoss`, SGD with momentum, and
autocast where we have it. Network, crop, batch, optimizer, workers and threads are the same; ours
also jitters colours. The two take turns in one process; the first steps of each turn, fed by what
its worker had read ahead, are not counted. Scenes are drawn, 360x480, in a temporary folder.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bench import record
from bench.turns import order
from model.build import BACKBONES, build
from training.config import TrainConfig, parse_config
from training.datasets import drawn
from training.loader import step_loader
from training.train import Trainer

HEIGHT, WIDTH = 360, 480
MOMENTUM, RATE = 0.9, 1e-4
VOID = 255

Batches = Iterator[tuple[Tensor, Tensor]]
Step = Callable[[Tensor, Tensor], float]


class PlainDataset(Dataset[tuple[Tensor, Tensor]]):
    """Gives float32 [3,h,w] RGB in 0..255 (the network normalises) and int64 [h,w]."""

    def __init__(self, folder: Path, crop: tuple[int, int]) -> None:
        self.images = sorted((folder / "images").iterdir())
        self.labels = sorted((folder / "labels").iterdir())
        self.crop = crop

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image: Image.Image = Image.open(self.images[index]).convert("RGB")
        label: Image.Image = Image.open(self.labels[index])
        factor = random.uniform(0.5, 2.0)
        size = round(image.width * factor), round(image.height * factor)
        image = image.resize(size, Image.Resampling.BILINEAR)
        label = label.resize(size, Image.Resampling.NEAREST)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            label = label.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
        target = torch.from_numpy(np.array(label)).long()
        height, width = self.crop
        down, right = max(0, height - target.shape[0]), max(0, width - target.shape[1])
        pixels = nn.functional.pad(pixels, (0, right, 0, down))
        target = nn.functional.pad(target, (0, right, 0, down), value=VOID)
        top = random.randint(0, target.shape[0] - height)
        left = random.randint(0, target.shape[1] - width)
        window = np.s_[..., top : top + height, left : left + width]
        return pixels[window], target[window]


def plain_step(config: TrainConfig, classes: int) -> Step:
    """Makes the optimizer step of a plain loop over the same network."""
    torch.manual_seed(config.seed)
    network = build(config.network, classes).train()
    criterion = nn.CrossEntropyLoss(ignore_index=VOID)
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=1e-4)

    def step(images: Tensor, target: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            loss = criterion(network(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def main(words: Sequence[str] | None = None) -> int:
    parser = record.parser("bench.training", __doc__)
    parser.add_argument("--network", choices=list(BACKBONES), default="mobilenet_v1")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crop", type=int, nargs=2, default=(320, 448), metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--steps", type=int, default=6, help="counted, of each turn")
    parser.add_argument("--warm-up", type=int, default=4, help="steps not counted, of each turn")
    parser.add_argument("--images", type=int, default=32, help="drawn")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--out", type=Path, help="by default results/training-NETWORK-PRECISION.json"
    )
    args = parser.parse_args(words)
    if min(args.batch, args.rounds, args.steps, args.images, *args.crop) < 1 or args.warm_up < 0:
        parser.error("want at least one of everything that is counted")
    if args.images < args.batch:
        parser.error("--images: want at least one batch")
    with tempfile.TemporaryDirectory() as folder:
        row = measure(args, Path(folder))
    speed, loader = row["images_per_s"], row["loader_images_per_s"]
    print(f"images/s: ours {speed['ours']:.2f}, plain loop {speed['plain']:.2f}, ratio "
          f"{row['ratio']:.2f}; our loader alone {loader['ours']:.0f}")  # fmt: skip
    name = f"training-{args.network}-{args.precision}.json"
    record.write(args.out or record.RESULTS / name, row)
    return 0


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    for split, count in (("train", args.images), ("val", 1)):
        drawn.write(folder / "data", split, count, HEIGHT, WIDTH, seed=0)
    config = config_of(args, folder / "data")
    trainer = Trainer(config, folder / "run", resume=False, run_log=None)
    trainer.network.train()

    def our_step(images: Tensor, target: Tensor) -> float:
        return trainer.learner.step([(images, target)])

    steps = args.rounds * (args.warm_up + args.steps)
    loops: dict[str, tuple[Step, Batches]] = {
        "ours": (our_step, our_batches(trainer, steps)),
        "plain": (
            plain_step(config, trainer.train_data.num_classes),
            plain_batches(folder / "data" / "train", args),
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(args.rounds):
        for name in order(loops, turn):
            times[name].append(_turn(*loops[name], args.warm_up, args.steps))
    del loops
    images = args.steps * args.batch
    speed = {name: round(images * args.rounds / sum(each), 3) for name, each in times.items()}
    return {
        "network": config.network.architecture,
        "precision": args.precision,
        **{name: getattr(args, name) for name in ("batch", "threads", "workers", "rounds")},
        "crop": list(args.crop),
        "steps": args.steps,
        "images_per_s": speed,
        "each_turn": {name: [round(images / s, 3) for s in each] for name, each in times.items()},
        "ratio": round(speed["ours"] / speed["plain"], 3),
        "loader_images_per_s": {
            "ours": loader_rate(our_batches(trainer, steps), args),
            "plain": loader_rate(plain_batches(folder / "data" / "train", args), args),
        },
    }


def config_of(args: argparse.Namespace, root: Path) -> TrainConfig:
    """Takes SGD without a moving average, which a plain loop has none of, and else the defaults."""
    height, width = args.crop
    raw: dict[str, Any] = {
        "name": "throughput",
        "network": {"backbone": args.network, "width": args.width},
        "data": {"dataset": "folder", "root": root, "workers": args.workers},
        "schedule": {"epochs": 10_000, "batch_size": args.batch, "ema_decay": 0},
        "augment": {"crop_height": height, "crop_width": width},
        "optimizer": {"kind": "sgd", "head_lr": RATE, "backbone_lr": RATE, "momentum": MOMENTUM},
        "precision": args.precision,
        "threads": args.threads,
    }
    return parse_config(raw, "bench")


def our_batches(trainer: Trainer, total: int) -> Batches:
    config = trainer.config
    steps = step_loader(
        trainer.train_data,
        config.augment,
        trainer.plan,
        seed=config.seed,
        start=0,
        total=total,
        workers=config.data.workers,
    )
    return (batch for step in steps for batch in step)


def plain_batches(folder: Path, args: argparse.Namespace) -> Batches:
    """Goes on without end: an epoch after the other, as a reference script's outer loop has it."""
    loader = DataLoader(
        PlainDataset(folder, (args.crop[0], args.crop[1])),
        args.batch,
        shuffle=True,
        num_workers=args.workers,
        drop_last=True,
        # Starting a process an epoch of 32 images would count against it.
        persistent_workers=args.workers > 0,
    )
    while True:
        yield from loader


def _turn(step: Step, batches: Batches, warm_up: int, steps: int) -> float:
    """Times the counted steps, in seconds, waiting for their batches included."""
    for _ in range(warm_up):
        step(*next(batches))
    started = time.perf_counter()
    for _ in range(steps):
        step(*next(batches))
    return time.perf_counter() - started


def loader_rate(batches: Batches, args: argparse.Namespace) -> float:
    """Counts images a second with nothing else to do, after the batch that starts the worker."""
    next(batches)
    started = time.perf_counter()
    for _ in range(args.steps):
        next(batches)
    return round(float(args.steps * args.batch / (time.perf_counter() - started)), 1)


if __name__ == "__main__":
    sys.exit(main())
