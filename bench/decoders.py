"""What decoding a JPEG costs: the server's way, Pillow's, and what else there is.

    python -m bench.decoders [--rounds 15]

CPU time of the thread that decodes, in turns. Hot: one decode after the other. Cold: before each, a
product of two matrices and a pass over 64 MB, as a network between two requests would leave the
caches. OpenCV takes part where it is installed (opencv-python-headless). Raises ValueError when one
gives other pixels than Pillow.
"""

from __future__ import annotations

import argparse
import importlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bench import record
from bench.render import draw_photo
from service.core.engines.memory import keep_freed_memory
from service.core.images import jpeg
from service.core.images.decode import _by_pillow, decode

UInt8Array = npt.NDArray[np.uint8]
_MOST = 1 << 30
_SIZES = ((360, 480), (1224, 1632))
_QUALITY = 90


def main() -> None:
    parser = argparse.ArgumentParser(description="time of decoding a JPEG")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=record.RESULTS / "decoders.json")
    args = parser.parse_args()
    keep_freed_memory()  # as the server does
    evict = _Evict()
    measured: dict[str, dict[str, Any]] = {}
    for height, width in _SIZES:
        photo = draw_photo(height, width)
        for kind, options in files().items():
            body = written(photo, **options)
            ways = contenders(body)
            for state, before in (("hot", None), ("cold", evict)):
                name = f"{height}x{width}, {kind}, {state}"
                measured[name] = take_turns(ways, args.rounds, before)
    print_table(measured)
    record.write(args.out, {"rounds": args.rounds, "quality": _QUALITY, "cpu_time": measured})


def files() -> dict[str, dict[str, Any]]:
    """Options of Pillow's writer."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0131] = "Maker of cameras", "Model of camera", "Firmware"
    exif[0x0112], exif[0x011A], exif[0x011B], exif[0x0128] = 1, 72.0, 72.0, 2
    exif[0x0132], exif[0x0213] = "2026:11:24 12:00:00", 1
    return {"JFIF": {}, "EXIF": {"exif": exif}, "progressive": {"progressive": True}}


def written(photo: UInt8Array, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "JPEG", quality=_QUALITY, **options)
    return buffer.getvalue()


def contenders(body: bytes) -> dict[str, Callable[[], UInt8Array]]:
    made: dict[str, Callable[[], UInt8Array]] = {
        "ours": lambda: decode(body, max_bytes=_MOST, max_pixels=_MOST).rgb,
        "Pillow": lambda: _by_pillow(body, "JPEG", _MOST),
    }
    try:
        cv2: Any = importlib.import_module("cv2")
    except ImportError:
        pass
    else:
        made["OpenCV"] = lambda: cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR_RGB)
    wanted = made["Pillow"]()
    for name, make in made.items():
        if not np.array_equal(make(), wanted):
            raise ValueError(f"{name} gives other pixels than Pillow")
    if jpeg.decode(body, max_pixels=_MOST) is None:
        raise ValueError("the server takes Pillow's way for this file: nothing to compare")
    return made


class _Evict:
    """Fills the caches with something else: a product of 12 MB, and 64 MB written."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._matrix = rng.random((1024, 1024), np.float32)
        self._product = np.empty_like(self._matrix)
        self._room = np.empty(64 << 20, np.uint8)

    def __call__(self) -> None:
        np.matmul(self._matrix, self._matrix.T, out=self._product)
        self._room += 1


def take_turns(
    ways: dict[str, Callable[[], UInt8Array]], rounds: int, before: Callable[[], None] | None
) -> dict[str, dict[str, float]]:
    """Milliseconds of each; one round first, not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(-1, rounds):
        for name, way in ways.items():
            if before is not None:
                before()
            started = time.thread_time()
            way()
            if index >= 0:
                times[name].append(time.thread_time() - started)
    return {name: record.summary(seconds) for name, seconds in times.items()}


def print_table(measured: dict[str, dict[str, dict[str, float]]]) -> None:
    print("| file | way | p50 ms | least ms |\n|---|---|---|---|")
    for name, ways in measured.items():
        for way, row in ways.items():
            print(f"| {name} | {way} | {row['p50_ms']:.2f} | {row['min_ms']:.2f} |")


if __name__ == "__main__":
    main()
