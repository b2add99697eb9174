"""Buffers as large as the picture that one /segment request makes on its way through the core.

    python -m bench.copies [--height 1224] [--width 1632]

Decode, prepare, batch, run, restore and render are called as the segmenter calls them, one after
the other. tracemalloc counts what Python and numpy allocate, Pillow counts its own images, and
numpy tells which arrays are the same memory. The network is a stand-in that returns arrays it
already has: what an engine allocates inside is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, _imaging

from bench import record
from bench.render import draw_photo, draw_scores, drawn_contract
from service.core import outputs as render
from service.core.batching.batcher import Batcher
from service.core.batching.lanes import Squeeze
from service.core.images.decode import decode
from service.core.images.prepare import prepare, restore
from service.core.types import Dtype, Float32Array, Instance, NullObserver

UInt8Array = npt.NDArray[np.uint8]
T = TypeVar("T")
_MOST = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description="copies of the picture on the request path")
    parser.add_argument("--height", type=int, default=1224)
    parser.add_argument("--width", type=int, default=1632)
    parser.add_argument("--out", type=Path, default=record.RESULTS / "copies.json")
    args = parser.parse_args()
    rows = measure(args.height, args.width)
    print_table(rows)
    size = {"height": args.height, "width": args.width}
    record.write(args.out, {**size, "stages": rows})


def measure(height: int, width: int) -> dict[str, dict[str, Any]]:
    """By stage: bytes per pixel that Python and numpy hold at most and at the end, beyond those
    held before; Pillow's images; and whether what comes out is the memory that went in.
    """
    scores = draw_scores(height, width)
    label_maps = scores.argmax(axis=0).astype(np.uint8)[None]
    buffer = io.BytesIO()
    Image.fromarray(draw_photo(height, width)).save(buffer, "JPEG", quality=90)
    body = buffer.getvalue()
    _request(body, label_maps, scores)  # what is imported and cached once does not count
    return _request(body, label_maps, scores)


def _request(
    body: bytes, label_maps: UInt8Array, scores: npt.NDArray[np.float32]
) -> dict[str, dict[str, Any]]:
    contract = drawn_contract()
    palette, names = contract.palette(), {"model": "bench", "version": "1"}
    counted = _Counted(label_maps.size)
    rgb = counted("decode", lambda: decode(body, max_bytes=_MOST, max_pixels=_MOST).rgb)
    prepared = counted("prepare", lambda: prepare(rgb, contract.input))
    counted.shares("prepare", prepared.tensor, rgb)
    labels, batch = counted("batch, run", lambda: _labelled(prepared.tensor, label_maps))
    counted.shares("batch, run", batch, prepared.tensor)
    label_map = counted("restore", lambda: restore(labels, prepared.geometry))
    counted.shares("restore", label_map, label_maps)
    makers: dict[str, Callable[[], bytes]] = {
        "label_map": lambda: render.label_map_png(label_map, palette),
        "color": lambda: render.color_png(label_map, palette),
        "overlay": lambda: render.overlay_png(rgb, label_map, palette, 0.5),
        "rle": lambda: render.rle_json(label_map, contract, **names),
        "polygons": lambda: render.polygons_json(label_map, contract, **names),
    }
    for name, make in makers.items():
        counted(f"render {name}", make)
    squeezes: dict[str, tuple[Squeeze, Callable[[npt.NDArray[Any]], bytes]]] = {
        "confidence": (partial(render.confidence, kept=None), render.gray_png)
    }
    for dtype in Dtype:
        squeeze = partial(render.probabilities, dtype=dtype, kept=None)
        squeezes[f"probabilities, {dtype}"] = squeeze, render.npy
    for name, (squeezed, write) in squeezes.items():
        made = counted(f"squeeze {name}", partial(squeezed, scores, label_map))
        counted(f"render {name}", partial(write, made))
        del made
    return counted.rows


class _Counted:
    """Calls the stages, and counts."""

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self.rows: dict[str, dict[str, Any]] = {}

    def __call__(self, stage: str, work: Callable[[], T]) -> T:
        _imaging.reset_stats()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        made = work()
        after, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        self.rows[stage] = {
            "most_bytes_per_pixel": round((most - before) / self._pixels, 2),
            "left_bytes_per_pixel": round((after - before) / self._pixels, 2),
            "pillow_images": _imaging.get_stats()["new_count"],
            "shares_memory": None,
        }
        return made

    def shares(self, stage: str, made: UInt8Array, given: UInt8Array) -> None:
        self.rows[stage]["shares_memory"] = bool(np.shares_memory(made, given))


def _labelled(image: UInt8Array, label_maps: UInt8Array) -> tuple[UInt8Array, UInt8Array]:
    """The label map as the batcher hands it on, and the batch that the network was given."""
    seen: list[UInt8Array] = []

    class Seen(Instance):
        def run(self, batch: UInt8Array) -> UInt8Array:
            seen.append(batch)
            return label_maps

        def run_with_logits(self, batch: UInt8Array) -> tuple[UInt8Array, Float32Array]:
            raise NotImplementedError

    async def submit() -> UInt8Array:
        batcher = Batcher(
            [Seen()],
            model="bench",
            max_batch=8,
            max_batch_pixels=_MOST,
            max_queue=8,
            observer=NullObserver(),
            clock=asyncio.get_running_loop().time,
        )
        batcher.start()
        try:
            return (await batcher.submit(image)).label_map
        finally:
            batcher.close()
            batcher.join()

    return asyncio.run(submit()), seen[0]


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    print("| stage | bytes a pixel, at most | at the end | Pillow's images | same memory |")
    print("|---|---|---|---|---|")
    for stage, row in rows.items():
        same = {None: "", True: "yes", False: "no"}[row["shares_memory"]]
        print(
            f"| {stage} | {row['most_bytes_per_pixel']} | {row['left_bytes_per_pixel']} | "
            f"{row['pillow_images']} | {same} |"
        )


if __name__ == "__main__":
    main()
