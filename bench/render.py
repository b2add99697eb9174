"""What each kind of reply costs, and what its makers were chosen over, on one thread.

    python -m bench.render [--height 1224] [--width 1632] [--rounds 9]

Of a drawn label map with 11 classes and a drawn photo. The libraries that were not chosen take part
where they are installed: zlib-ng, opencv-python-headless. Of decoding: `bench.decoders`.
"""

from __future__ import annotations

import argparse
import importlib
import io
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from isal import isal_zlib
from PIL import Image

from bench import record
from model.contract import ClassInfo, Contract, TrainingData
from service.core import outputs as render
from service.core.engines.memory import keep_freed_memory
from service.core.outputs.png import _differences
from service.core.types import Dtype, Timings

UInt8Array = npt.NDArray[np.uint8]
CLASSES = 11
_CELL_PX = 96
"""Size of the larger blobs of the drawn label map."""

Make = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description="time of each kind of reply")
    parser.add_argument("--height", type=int, default=1224)
    parser.add_argument("--width", type=int, default=1632)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=record.RESULTS / "render.json")
    args = parser.parse_args()
    keep_freed_memory()  # as the server does
    scores = draw_scores(args.height, args.width)
    label_map = scores.argmax(axis=0).astype(np.uint8)
    smooth = draw_scores(args.height, args.width, detail=0.0).argmax(axis=0).astype(np.uint8)
    photo = draw_photo(args.height, args.width)
    parts: dict[str, dict[str, Make]] = {
        "replies": replies(label_map, scores, photo),
        "replies_smooth": replies(smooth, scores, photo, scored=False),
        "label_map_png": label_map_pngs(label_map),
        "rgb_png_of_overlay": rgb_pngs(photo),
        "rgb_png_of_color": rgb_pngs(drawn_contract().palette()[label_map]),
        "exponentials": exponentials(scores),
        "masks": masks(label_map),
        "counts": counts(label_map),
    }
    measured = {name: take_turns(part, args.rounds) for name, part in parts.items()}
    print_tables(measured)
    size = {"height": args.height, "width": args.width, "classes": CLASSES}
    record.write(args.out, {**size, "rounds": args.rounds, **measured})


def take_turns(contenders: dict[str, Make], rounds: int) -> dict[str, dict[str, Any]]:
    """Milliseconds and bytes of each; one round first, not counted."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    made: dict[str, Any] = {}
    for index in range(-1, rounds):
        for name, make in contenders.items():
            started = time.perf_counter()
            made[name] = make()
            if index >= 0:
                times[name].append(time.perf_counter() - started)
    return {
        name: {
            **record.summary(seconds),
            "bytes": len(made[name]) if isinstance(made[name], bytes) else None,
        }
        for name, seconds in times.items()
    }


def replies(
    label_map: UInt8Array,
    scores: npt.NDArray[np.float32],
    photo: UInt8Array,
    *,
    scored: bool = True,
) -> dict[str, Make]:
    contract = drawn_contract()
    palette = contract.palette()
    names = {"model": "bench", "version": "1"}
    made: dict[str, Make] = {
        "label_map": lambda: render.label_map_png(label_map, palette),
        "color": lambda: render.color_png(label_map, palette),
        "overlay": lambda: render.overlay_png(photo, label_map, palette, 0.5),
        "overlay, outlines": lambda: render.overlay_png(
            photo, label_map, palette, 0.5, outlines=True
        ),
        "json": lambda: render.summary_json(label_map, contract, timings=Timings(), **names),
        "rle": lambda: render.rle_json(label_map, contract, **names),
        "polygons": lambda: render.polygons_json(label_map, contract, **names),
    }
    if not scored:
        return made
    return {
        **made,
        "probabilities, uint8": lambda: render.npy(
            render.probabilities(scores, label_map, Dtype.UINT8, None)
        ),
        "probabilities, float16": lambda: render.npy(
            render.probabilities(scores, label_map, Dtype.FLOAT16, None)
        ),
        "confidence": lambda: render.gray_png(render.confidence(scores, label_map, None)),
    }


def label_map_pngs(label_map: UInt8Array) -> dict[str, Make]:
    """Ways to pack a label map, as files (Pillow) or the compressed part alone."""
    palette = drawn_contract().palette()
    rows = _differences(label_map)
    plain = rows.copy()
    plain[:, 0], plain[:, 1:] = 0, label_map
    made: dict[str, Make] = {
        "ours": lambda: render.label_map_png(label_map, palette),
        "Pillow, level 1": partial(_pillow, label_map, palette, 1),
        "Pillow, level 6": partial(_pillow, label_map, palette, 6),
        "Pillow, level 1, 4 bits a pixel": partial(_pillow, label_map, palette, 1, bits=4),
        "zlib 1, rows as they are": partial(_zlib, plain, zlib.Z_DEFAULT_STRATEGY),
        "ISA-L 1, rows as they are": partial(isal_zlib.compress, plain, 1),
        "zlib 1, differences": partial(_zlib, rows, zlib.Z_DEFAULT_STRATEGY),
        "zlib 1, differences, run lengths": partial(_zlib, rows, zlib.Z_RLE),
        "ISA-L 0, differences": partial(isal_zlib.compress, rows, 0),
        "ISA-L 1, differences": partial(isal_zlib.compress, rows, 1),
        "ISA-L 3, differences": partial(isal_zlib.compress, rows, 3),
    }
    if (zlib_ng := _optional("zlib_ng.zlib_ng")) is not None:
        made["zlib-ng 1, differences"] = lambda: zlib_ng.compress(rows, 1)
    return made


def rgb_pngs(rgb: UInt8Array) -> dict[str, Make]:
    rows = _differences(rgb.reshape(len(rgb), -1))
    made: dict[str, Make] = {
        "Pillow, level 1": partial(_pillow, rgb, None, 1),
        "zlib 1, differences, run lengths": partial(_zlib, rows, zlib.Z_RLE),
        "zlib, differences, Huffman codes alone": partial(_zlib, rows, zlib.Z_HUFFMAN_ONLY),
        "ISA-L 0, differences": partial(isal_zlib.compress, rows, 0),
        "ISA-L 1, differences": partial(isal_zlib.compress, rows, 1),
        "not compressed": lambda: zlib.compress(rows.data, 0),
    }
    if (zlib_ng := _optional("zlib_ng.zlib_ng")) is not None:
        made["zlib-ng 1, differences"] = lambda: zlib_ng.compress(rows, 1)
        made["zlib-ng, differences, Huffman codes alone"] = partial(
            _zlib, rows, zlib.Z_HUFFMAN_ONLY, zlib_ng
        )
    if (cv2 := _optional("cv2")) is not None:
        level = [cv2.IMWRITE_PNG_COMPRESSION, 1]
        made["OpenCV, level 1"] = lambda: cv2.imencode(".png", rgb, level)[1].tobytes()
    return made


def masks(label_map: UInt8Array) -> dict[str, Make]:
    mask = importlib.import_module("pycocotools.mask")
    made: dict[str, Make] = {
        "rle, ours": lambda: render.rle_json(label_map, drawn_contract(), model="a", version="1"),
        "rle, pycocotools, class by class": lambda: [
            mask.encode(np.asfortranarray(label_map == n)) for n in range(CLASSES)
        ],
    }
    if (cv2 := _optional("cv2")) is not None:
        made["contours, OpenCV, class by class (through pixel centres)"] = lambda: [
            cv2.findContours(
                (label_map == n).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
            )
            for n in range(CLASSES)
        ]
    return made


def counts(label_map: UInt8Array) -> dict[str, Make]:
    return {
        "numpy.bincount": lambda: np.bincount(label_map.ravel(), minlength=256),
        "numpy.unique": lambda: np.unique(label_map, return_counts=True),
        "Pillow's histogram": lambda: Image.fromarray(label_map).histogram(),
    }


def exponentials(scores: npt.NDArray[np.float32]) -> dict[str, Make]:
    """What is in every probability, however it is made."""
    part = np.ascontiguousarray(scores[:, : max(1, (1 << 17) // scores[:, 0].size)])
    room, sums = np.empty_like(part), np.empty(part.shape[1:], np.float32)
    times = scores.size // part.size

    def again(step: Callable[[], Any]) -> Make:
        return lambda: [step() for _ in range(times)] and None

    return {
        "reading the logits": scores.max,
        "exp of all, in the cache": again(lambda: np.exp(part, out=room)),
        "their sums, in the cache": again(lambda: np.add.reduce(room, axis=0, out=sums)),
    }


def draw_scores(height: int, width: int, detail: float = 0.15) -> npt.NDArray[np.float32]:
    """float32 [C,H,W]: smooth fields with some detail, whose largest makes blobs."""
    rng = np.random.default_rng(0)
    rows, columns = height // _CELL_PX + 2, width // _CELL_PX + 2

    def field(factor: int) -> npt.NDArray[np.float32]:
        noise = rng.normal(size=(rows * factor, columns * factor)).astype(np.float32)
        return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))

    return 4 * np.stack([field(1) + np.float32(detail) * field(6) for _ in range(CLASSES)])


def draw_photo(height: int, width: int) -> UInt8Array:
    """uint8 RGB [H,W,3]: shades with the grain of a camera, once through JPEG."""
    rng = np.random.default_rng(3)
    shades = Image.fromarray(rng.integers(0, 256, (height // 12, width // 12, 3), np.uint8))
    smooth = np.asarray(shades.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    grain = rng.normal(0, 4, smooth.shape).astype(np.float32)
    buffer = io.BytesIO()
    pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return np.asarray(Image.open(buffer))


def drawn_contract() -> Contract:
    return Contract(
        model_name="bench",
        architecture="bench",
        classes=tuple(ClassInfo(i, f"class{i}", (i * 23, 255 - i, i * 7)) for i in range(CLASSES)),
        training_data=TrainingData("none", "none"),
    )


def _pillow(pixels: UInt8Array, palette: UInt8Array | None, level: int, **options: int) -> bytes:
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette[:16].tobytes() if options else palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=level, **options)
    return buffer.getvalue()


def _zlib(rows: UInt8Array, strategy: int, library: Any = zlib) -> bytes:
    packer: Any = library.compressobj(
        1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy
    )
    packed: bytes = packer.compress(rows) + packer.flush()
    return packed


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def print_tables(measured: dict[str, dict[str, dict[str, Any]]]) -> None:
    for part, rows in measured.items():
        print(f"\n| {part} | p50 ms | least ms | bytes |\n|---|---|---|---|")
        for name, row in rows.items():
            size = "" if row["bytes"] is None else row["bytes"]
            print(f"| {name} | {row['p50_ms']:.1f} | {row['min_ms']:.1f} | {size} |")


if __name__ == "__main__":
    main()
