"""Measures what each kind of reply costs on one thread.

    python -m bench.replies [--height 1224] [--width 1632] [--rounds 9]

Replies are made of a drawn label map with 11 classes, of much detail ("detailed") and of blobs
alone ("smooth"), of the scores behind it, and of a drawn image with grain.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bench import record
from bench.images import UInt8Array, scene
from bench.turns import Run, take_turns
from model.contract import ClassInfo, Contract, TrainingData
from service.core.engines.memory import keep_freed_memory
from service.core.outputs.color import color_png
from service.core.outputs.confidence import confidence
from service.core.outputs.overlay import overlay_png
from service.core.outputs.png import gray_png, label_map_png
from service.core.outputs.polygons import polygons_json
from service.core.outputs.probabilities import npy, probabilities
from service.core.outputs.rle import rle_json
from service.core.outputs.summary import summary_json
from service.core.types import Dtype, Timings

CLASSES = 11
_CELL_PX = 96
"""Size of the larger blobs of the drawn label map."""


def main(words: Sequence[str] | None = None) -> int:
    parser = record.parser("bench.replies", __doc__)
    parser.add_argument("--height", type=int, default=1224)
    parser.add_argument("--width", type=int, default=1632)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=record.RESULTS / "replies.json")
    args = parser.parse_args(words)
    keep_freed_memory()  # as the server does
    scores = draw_scores(args.height, args.width)
    detailed = scores.argmax(axis=0).astype(np.uint8)
    smooth = draw_scores(args.height, args.width, detail=0.0).argmax(axis=0).astype(np.uint8)
    image = scene((args.height, args.width))
    parts: dict[str, dict[str, Run]] = {
        "detailed": {**of_labels(detailed, image), **of_scores(detailed, scores)},
        "smooth": of_labels(smooth, image),
    }
    measured = {}
    for part, makers in parts.items():
        times = take_turns(makers, args.rounds)
        measured[part] = {
            name: {**times[name], "bytes": len(bytes(make()))}  # type: ignore[call-overload]
            for name, make in makers.items()
        }
    print_tables(measured)
    size = {"height": args.height, "width": args.width, "classes": CLASSES}
    record.write(args.out, {**size, "rounds": args.rounds, **measured})
    return 0


def of_labels(label_map: UInt8Array, image: UInt8Array) -> dict[str, Run]:
    contract = Contract(
        model_name="bench",
        architecture="bench",
        classes=tuple(ClassInfo(i, f"class{i}", (i * 23, 255 - i, i * 7)) for i in range(CLASSES)),
        training_data=TrainingData("none", "none"),
    )
    palette = contract.palette()
    names = {"model": "bench", "version": "1"}
    return {
        "label_map": lambda: label_map_png(label_map, palette),
        "color": lambda: color_png(label_map, palette),
        "overlay": lambda: overlay_png(image, label_map, palette, 0.5),
        "overlay, outlines": lambda: overlay_png(image, label_map, palette, 0.5, outlines=True),
        "json": lambda: summary_json(
            label_map, contract, timings=Timings(), network_size=label_map.shape[:2], **names
        ),
        "rle": lambda: rle_json(label_map, contract, **names),
        "polygons": lambda: polygons_json(label_map, contract, **names),
    }


def of_scores(label_map: UInt8Array, scores: npt.NDArray[np.float32]) -> dict[str, Run]:
    makers: dict[str, Run] = {
        f"probabilities, {dtype}": lambda dtype=dtype: npy(  # type: ignore[misc]
            probabilities(scores, label_map, dtype, None)
        )
        for dtype in (Dtype.UINT8, Dtype.FLOAT16)
    }
    makers["confidence"] = lambda: gray_png(confidence(scores, label_map, None))
    return makers


def draw_scores(height: int, width: int, detail: float = 0.15) -> npt.NDArray[np.float32]:
    """Draws float32 [C,H,W]: smooth fields with some detail, whose largest makes blobs."""
    rng = np.random.default_rng(0)
    rows, columns = height // _CELL_PX + 2, width // _CELL_PX + 2

    def field(factor: int) -> npt.NDArray[np.float32]:
        noise = rng.normal(size=(rows * factor, columns * factor)).astype(np.float32)
        return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))

    return 4 * np.stack([field(1) + np.float32(detail) * field(6) for _ in range(CLASSES)])


def print_tables(measured: dict[str, dict[str, dict[str, Any]]]) -> None:
    for part, rows in measured.items():
        print(f"\n| {part} | p50 ms | least ms | bytes |\n|---|---|---|---|")
        for name, row in rows.items():
            print(f"| {name} | {row['p50_ms']:.1f} | {row['min_ms']:.1f} | {row['bytes']} |")


if __name__ == "__main__":
    sys.exit(main())
