"""What a large picture takes: a server with a memory limit answers one of 100 megapixels.

    python -m bench.large_pictures [--megapixels 100] [--whole-pixels 1048576] [--compare 12]

Starts `fcn serve` with the shipped model, posts a drawn JPEG and reports the time and the most
memory the server ever held. With --compare N, a picture of N megapixels is also answered by a
server that runs it whole, and every label must be the same.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench import record
from bench.segment_load import Server
from training.datasets.drawn import draw

REPOSITORY = Path(__file__).parents[1] / "model_repository"


def picture(megapixels: float) -> bytes:
    """A JPEG of about that many pixels, four wide to three high: one scene, repeated."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = round(megapixels * 1e6 / height)
    scene = draw(750, 1000, np.random.default_rng(0)).image
    tiled = np.tile(scene, (-(-height // 750), -(-width // 1000), 1))[:height, :width]
    buffer = io.BytesIO()
    Image.fromarray(tiled).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def ask(server: Server, body: bytes) -> tuple[bytes, float]:
    """The label map's PNG, and seconds."""
    request = urllib.request.Request(
        f"{server.url}/segment?deadline_ms=600000", body, {"Content-Type": "image/jpeg"}
    )
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=600) as reply:
        return reply.read(), time.perf_counter() - began


def most_bytes(pid: int) -> int:
    """The largest resident size of the process so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def measure(megapixels: float, whole_pixels: int) -> tuple[dict[str, Any], bytes]:
    body = picture(megapixels)
    server = Server(
        REPOSITORY,
        f"--max-image-pixels={int(megapixels * 1.01e6)}",
        f"--max-image-bytes={len(body)}",
        f"--max-whole-pixels={whole_pixels}",
    )
    try:
        at_rest = most_bytes(server.process.pid)
        answer, seconds = ask(server, body)
        row = {
            "megapixels": megapixels,
            "upload_mib": round(len(body) / 2**20, 1),
            "whole_pixels": whole_pixels,
            "seconds": round(seconds, 1),
            "at_rest_mib": round(at_rest / 2**20),
            "most_mib": round(most_bytes(server.process.pid) / 2**20),
        }
    finally:
        server.stop()
    return row, answer


def main() -> int:
    parser = argparse.ArgumentParser(description="time and memory of a large picture")
    parser.add_argument("--megapixels", type=float, default=100)
    parser.add_argument("--whole-pixels", type=int, default=1024 * 1024)
    parser.add_argument("--compare", type=float, default=12, help="megapixels; 0 leaves it out")
    parser.add_argument("--out", type=Path, default=record.RESULTS / "large-pictures.json")
    args = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None
    rows = []
    if args.compare:
        parts, in_parts = measure(args.compare, args.whole_pixels)
        whole, at_once = measure(args.compare, round(args.compare * 1.01e6))
        labels = [np.asarray(Image.open(io.BytesIO(png))) for png in (in_parts, at_once)]
        parts["labels_that_differ"] = int((labels[0] != labels[1]).sum())
        rows += [parts, whole]
    rows.append(measure(args.megapixels, args.whole_pixels)[0])
    for row in rows:
        print(row)
    record.write(args.out, {"rows": rows})
    return int(any(row.get("labels_that_differ") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
