"""Implements `fcn tune`, which finds the settings that make this machine serve fastest."""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.tuning import Tuning

HELP = "measure which engine and precision suit this machine, and write a settings file"

MARK = "# Written by fcn tune"
_BAR = 30


class TuneError(Exception):
    """Tells in one line why this cannot tune, and what to do."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measure on this machine's CPU how a model is served fastest: engine, precision, "
        "inferences at once, threads of each, images in one inference. Each way is run as the "
        "server would run it, without HTTP. Writes a settings file; serve with it by "
        "FCN_SETTINGS_FILE=FILE fcn serve. Run it while the machine has nothing else to do."
    )
    parser.add_argument("--model", type=Path, help="model file; default: the repository's model")
    parser.add_argument("--size", default="360x480", help="HEIGHTxWIDTH of the images served")
    parser.add_argument("--seconds", type=float, default=45.0, help="time to measure, 60 at most")
    parser.add_argument(
        "--engine",
        action="append",
        choices=["onnxruntime", "openvino"],
        help="measure this engine only; default: all that are installed",
    )
    parser.add_argument("--out", type=Path, default=Path("fcn-tuned.env"), help="settings file")
    parser.add_argument("--json", action="store_true", help="write one JSON object")


def run(args: argparse.Namespace) -> int:
    """Raises: TuneError, SettingsError, ModelLoadError."""
    from service.core.engines.choice import FP16_FILE, INT8_FILE
    from service.core.engines.cores import available_cores, cpu_flags
    from service.core.engines.onnx_runtime import open_onnx_runtime
    from service.core.engines.warm_up import accepted_sizes
    from service.settings import load_settings
    from service.tuning import installed_engines, through_segmenter, tune, ways_of

    if not 0 < args.seconds <= 60:
        raise TuneError(f"--seconds {args.seconds:g}: give more than 0 and at most 60")
    path = args.model or _model_of_repository()
    if path.name in (INT8_FILE, FP16_FILE):
        raise TuneError(f"{path} belongs to the model.onnx beside it: give that one")
    wanted = _size(args.size)
    check_writable(args.out)
    contract = open_onnx_runtime(path, provider="cpu", threads=1).contract
    sizes = accepted_sizes([wanted], contract.input)
    if not sizes:
        raise TuneError(f"{path} takes no images of {args.size}: choose another --size")
    cores = available_cores()
    with tempfile.TemporaryDirectory(prefix="fcn-tune-") as cache:
        found = tune(
            through_segmenter(path, contract.model_name, jpeg(*wanted), sizes[0], cores),
            ways_of(path, args.engine or installed_engines(), cpu_flags()),
            seconds=args.seconds,
            cores=cores,
            config=replace(load_settings().segmenter_config(), cache_dir=Path(cache)),
            progress=_progress,
        )
    args.out.write_text(settings_text(found, path, args.size), encoding="utf-8")
    if args.json:
        print_json(found, path, args.out)
    else:
        print_table(found, args.out)
    return 0


def jpeg(height: int, width: int) -> bytes:
    """Draws an image's file."""
    from PIL import Image

    from service.core.engines.choice import draw_shapes

    file = io.BytesIO()
    Image.fromarray(draw_shapes(height, width)).save(file, "JPEG", quality=90)
    return file.getvalue()


def check_writable(path: Path) -> None:
    """Tries the settings file before minutes go into measuring. Raises: TuneError."""
    try:
        if path.exists():
            if not path.read_text(encoding="utf-8-sig").startswith(MARK):
                raise TuneError(f"{path} was not written by fcn tune: choose another --out")
            with path.open("a"):
                return
        with path.open("x"):
            pass
        path.unlink()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise TuneError(f"{path} cannot be written: {reason}: choose another --out") from error


def settings_text(found: Tuning, path: Path, size: str) -> str:
    from datetime import UTC, datetime

    from service.core.engines.cores import available_cores

    best = found.chosen
    lines = [
        f"{MARK}, {datetime.now(UTC).date()}, on a machine of {available_cores()} cores,",
        f"# for {path} and images of {size}: {best.images_per_s:g} images/s.",
        "# Tune again on another machine, or for another model.",
        *(f"{name}={value}" for name, value in found.settings().items()),
    ]
    return "\n".join(lines) + "\n"


def print_table(found: Tuning, out: Path) -> None:
    titles = f"{'at once':>7} {'threads':>7} {'batch':>5} {'images/s':>9} {'p50 ms':>8}"
    print(f"{'engine':18} {titles}")
    for row in found.throughput:
        c = row.candidate
        mark = " <- chosen" if row == found.chosen else ""
        print(
            f"{c.engine:12} {c.precision:5} {c.instances:7} {c.threads:7} {c.batch:5} "
            f"{row.images_per_s:9.1f} {row.p50_ms:8.1f}{mark}"
        )
    for way, reason in found.refused.items():
        print(f"{way:18} refused: {reason}")
    print("\none image alone")
    for single in found.single:
        mark = " <- chosen" if single.threads == found.alone_threads else ""
        print(f"{single.threads:3} threads {single.p50_ms:8.1f} ms{mark}")
    print(f"\n{explanation(found)}\n")
    for name, value in found.settings().items():
        print(f"{name}={value}")
    print(f"\nwritten to {out}: serve with FCN_SETTINGS_FILE={out} fcn serve")


def explanation(found: Tuning) -> str:
    from service.tuning import MIN_SPEEDUP_FOR_BATCH, MIN_SPEEDUP_FOR_COPY, NEAR_BEST

    best = max(row.images_per_s for row in found.throughput)
    text = (
        f"Chosen is the simplest way within {1 - NEAR_BEST:.0%} of the best ({best:g} images/s): "
        "ONNX Runtime before OpenVINO, fp32 before bf16 before int8, one image before several, few "
        "threads before many. "
        "Several in one inference wait for each other, so they count from "
        f"{MIN_SPEEDUP_FOR_BATCH:g} times the images/s of single ones."
    )
    if found.alone_threads > found.chosen.candidate.threads:
        return (
            f"{text} An image that comes alone gets {found.alone_threads} threads and so its "
            "answer sooner, for a second copy of the model in memory."
        )
    if found.alone_threads == found.single[-1].threads:
        return f"{text} An image that comes alone has all cores anyway."
    return (
        f"{text} More threads for an image that comes alone would save less than "
        f"{1 - 1 / MIN_SPEEDUP_FOR_COPY:.0%} of its time: not worth a second copy of the model in "
        "memory."
    )


def print_json(found: Tuning, path: Path, out: Path) -> None:
    import dataclasses
    import json

    print(
        json.dumps(
            {
                "model": str(path),
                "settings_file": str(out),
                "settings": found.settings(),
                **dataclasses.asdict(found),
            }
        )
    )


def _model_of_repository() -> Path:
    """Finds the file that a server would answer with.

    Raises: TuneError, SettingsError, ModelLoadError.
    """
    from service.core.models.model_settings import DEFAULT_ALIAS, read_aliases
    from service.core.models.repository import scan
    from service.settings import load_settings

    settings = load_settings()
    files = scan(settings.model_repository)
    names = sorted({file.name for file in files})
    meant = settings.default_model or DEFAULT_ALIAS
    name = read_aliases(settings.model_repository).get(meant, (meant, None))[0]
    if name not in names and len(names) == 1 and settings.default_model is None:
        name = names[0]
    if name not in names:
        raise TuneError(
            f"the repository {settings.model_repository} has {', '.join(names)}: say which to tune "
            "for with --model FILE"
        )
    return max((file for file in files if file.name == name), key=lambda f: int(f.version)).path


def _size(text: str) -> tuple[int, int]:
    """Reads a height and width. Raises: TuneError."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise TuneError(f"--size {text}: give HEIGHTxWIDTH, such as 360x480")
    return int(height), int(width)


def _progress(share: float, what: str) -> None:
    """Draws a bar on stderr, where somebody looks at it."""
    if not sys.stderr.isatty():
        return
    filled = round(_BAR * min(1.0, share))
    end = "\n" if share >= 1 else ""
    sys.stderr.write(f"\r\x1b[K[{'#' * filled}{' ' * (_BAR - filled)}] {what}{end}")
    sys.stderr.flush()
