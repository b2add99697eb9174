"""Draws street scenes as a folder of images and masks, to try training with.

    python -m training.datasets.drawn DIR --train 64 --val 16 --test 16

Every scene has a sky, houses, a road, some trees and a strip of void along one side. Colours
vary from scene to scene and are noisy.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from training.datasets.base import VOID, Sample

CLASS_LIST = """\
name: drawn streets
licence: CC0-1.0
source: python -m training.datasets.drawn
classes:
  - {name: sky, color: [70, 130, 180]}
  - {name: house, color: [128, 0, 0]}
  - {name: road, color: [128, 64, 128]}
  - {name: tree, color: [128, 128, 0], description: crown and trunk}
"""
SKY, HOUSE, ROAD, TREE = range(4)

_COLORS = np.array([[150, 180, 220], [170, 120, 90], [95, 90, 100], [60, 130, 50]], np.float64)
"""RGB around which a scene's colours vary."""


def draw(height: int, width: int, rng: np.random.Generator) -> Sample:
    """Draw one scene of at least 16x16."""
    target = np.full((height, width), SKY, np.uint8)
    horizon = int(height * rng.uniform(0.5, 0.7))
    edge = 0
    while edge < width:
        stop = edge + int(width * rng.uniform(0.15, 0.35)) + 1
        roof = int(horizon * rng.uniform(0.2, 0.8))
        if rng.random() < 0.75:
            target[roof:horizon, edge:stop] = HOUSE
        edge = stop
    target[horizon:] = ROAD
    rows, columns = np.mgrid[:height, :width]
    for _ in range(int(rng.integers(1, 4))):
        middle, radius = rng.uniform(0, width), height * rng.uniform(0.08, 0.18)
        top = horizon - 2 * radius
        target[(rows - top) ** 2 + (columns - middle) ** 2 < radius**2] = TREE
        trunk = (abs(columns - middle) < radius / 4) & (rows >= top) & (rows < horizon)
        target[trunk] = TREE
    colors = _COLORS + rng.normal(0, 12, _COLORS.shape)
    image = colors[target] * rng.uniform(0.8, 1.1) + rng.normal(0, 10, (height, width, 3))
    # As an annotator leaves the border of an image unlabelled.
    target[:, : max(1, width // 20)] = VOID
    return Sample(image.clip(0, 255).astype(np.uint8), target)


def jpeg(height: int, width: int, seed: int, quality: int = 90) -> bytes:
    """Encodes one scene, without its mask; the same for the same seed."""
    buffer = io.BytesIO()
    scene = draw(height, width, np.random.default_rng(seed))
    Image.fromarray(scene.image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write(root: Path, split: str, count: int, height: int, width: int, seed: int) -> None:
    """Write `count` scenes as `<root>/<split>/images/*.jpg` and `labels/*.png`, and the class
    list."""
    images, labels = root / split / "images", root / split / "labels"
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    (root / "classes.yaml").write_text(CLASS_LIST)
    for index in tqdm(range(count), split, unit="scene", disable=count < 100):
        split_seed = int.from_bytes(split.encode(), "big")
        scene = draw(height, width, np.random.default_rng((seed, split_seed, index)))
        Image.fromarray(scene.image).save(images / f"{index:04}.jpg", quality=92)
        Image.fromarray(scene.target).save(labels / f"{index:04}.png")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.datasets.drawn", description=__doc__)
    parser.add_argument("root", type=Path, metavar="DIR")
    for split, count in (("train", 64), ("val", 16), ("test", 16)):
        parser.add_argument(f"--{split}", type=int, default=count, metavar="COUNT")
    parser.add_argument("--height", type=int, default=120)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    if min(args.height, args.width) < 16:
        parser.error("want scenes of at least 16x16")
    for split in ("train", "val", "test"):
        write(args.root, split, getattr(args, split), args.height, args.width, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
