"""Images whose label is their brightest channel, as tests.tiny_models answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from tests.drawing import street
from tests.tiny_models import CLASSES, expected_label_map

COUNT = 6


def write(root: Path) -> None:
    """Split `test` of a folder data set, every image of another size."""
    classes = [{"name": info.name, "color": list(info.color)} for info in CLASSES]
    listed = {"name": "brightest", "licence": "CC0-1.0", "classes": classes}
    (root / "classes.yaml").write_text(yaml.safe_dump(listed))
    for kind in ("images", "labels"):
        (root / "test" / kind).mkdir(parents=True)
    for index in range(COUNT):
        rgb = street(20 + index, 31 - index, seed=index)
        Image.fromarray(rgb).save(root / f"test/images/{index}.png")
        label = expected_label_map(rgb).astype(np.uint8)
        label[0] = 255
        Image.fromarray(label).save(root / f"test/labels/{index}.png")
