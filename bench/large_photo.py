"""Compares a large photo with one of the size that the network learned at: time, and mean IU.

    python -m bench.large_photo [--data-root CAMVID] [--images 12] [--rounds 3]

One client asks the server of the shipped model, one request after the other, the kinds of files
taking turns. With a copy of CamVid its frames of val are enlarged to 4000x3000, the server labels
them, and the answers at the frames' own pixels are scored.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
from PIL import Image

from bench import record
from bench.images import scene
from bench.servers import ROOT, fcn_serve, running
from bench.turns import Run, take_turns

MODEL = ROOT / "model_repository/camvid-fcn8s-mobilenet_v1/1/model.onnx"
LEARNED, LARGE = (480, 360), (4000, 3000)
"""(width, height)"""
_TURNED = 6  # EXIF's orientation of a phone that is held upright


def main(words: Sequence[str] | None = None) -> int:
    parser = record.parser("bench.large_photo", __doc__)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slot-s", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=record.RESULTS / "large-photo.json")
    args = parser.parse_args(words)
    drawn = Image.fromarray(scene(LEARNED[::-1]))
    frames = sorted((args.data_root / "val/images").glob("*.jpg")) if args.data_root else []
    first = Image.open(frames[0]).convert("RGB") if frames else drawn
    files = {
        "480x360": jpeg(first),
        "4000x3000": jpeg(larger(first)),
        "4000x3000, turned by EXIF": jpeg(larger(first), _TURNED),
        "4000x3000, progressive": jpeg(larger(first), progressive=True),
    }
    command = fcn_serve(ROOT, MODEL)
    with running(command, files["480x360"]), httpx.Client(timeout=60.0) as client:

        def ask(body: bytes, scale: str = "auto") -> bytes:
            reply = client.post(command.url, params={"scale": scale}, content=body)
            reply.raise_for_status()
            return reply.content

        runs: dict[str, Run] = {name: lambda body=body: ask(body) for name, body in files.items()}  # type: ignore[misc]
        times = take_turns(runs, args.rounds, slot_s=args.slot_s, pause_s=0.2)
        began = time.perf_counter()
        ask(files["4000x3000"], "none")
        whole_s = time.perf_counter() - began
        scores = {}
        for name, size in (("480x360", LEARNED), ("4000x3000", LARGE)):
            chosen = frames[:: max(1, -(-len(frames) // args.images))] if args.images else []
            confusion = np.zeros((11, 11), np.int64)
            for frame in chosen:
                image = Image.open(frame).convert("RGB")
                labels = read(ask(jpeg(larger(image, size)))).resize(
                    LEARNED, Image.Resampling.NEAREST
                )
                target = np.asarray(Image.open(label_of(frame)))
                known = target < 11
                pairs = target[known].astype(np.int64) * 11 + np.asarray(labels)[known]
                confusion += np.bincount(pairs, minlength=121).reshape(11, 11)
            if chosen:
                scores[name] = round(100 * mean_iu(confusion), 2)
    own = times["480x360"]["p50_ms"]
    limit = 2.5 * own + 25
    for name, row in times.items():
        print(f"{name:<28} p50 {row['p50_ms']:.1f} ms, at most {limit:.1f} is wanted")
    print(f"{'4000x3000, scale=none':<28} {1000 * whole_s:.0f} ms")
    print(f"mean IU: {scores}")
    record.write(args.out, {**times, "scale_none_s": round(whole_s, 2), "mean_iu": scores})
    return 0


def larger(image: Image.Image, size: tuple[int, int] = LARGE) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def jpeg(image: Image.Image, orientation: int = 1, *, progressive: bool = False) -> bytes:
    buffer, tags = io.BytesIO(), Image.Exif()
    tags[0x0112] = orientation
    more = {"exif": tags.tobytes()} if orientation > 1 else {}
    image.save(buffer, "JPEG", quality=90, progressive=progressive, **more)
    return buffer.getvalue()


def read(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


def label_of(frame: Path) -> Path:
    return frame.parent.parent / "labels" / f"{frame.stem}.png"


def mean_iu(confusion: npt.NDArray[np.int64]) -> float:
    """Averages over the classes that are there or were answered. confusion: int64 [C,C]."""
    hits = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return float((hits[union > 0] / union[union > 0]).mean())


if __name__ == "__main__":
    sys.exit(main())
