"""Implements `fcn bench`, which loads a server and says how many answers come within a target."""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path
from typing import Any

from cli._api_key import add_api_key_file, read_api_key
from cli._arguments import scale, share
from cli._tls import add_tls, tls_of

HELP = "load a server, and say what share of answers comes within a target"
_PROBE_S = 60.0
_LAG_SHARE = 0.1
"""Sent later than this share of the target, requests tell of the sender, too."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Send images at random times (Poisson arrivals) at a rate that does not wait for answers, "
        "and print latencies, goodput, the share within the target, and errors by kind. Latency "
        "counts from when a request was due, so that a server that stalls is charged for everybody "
        "who came meanwhile. Nothing is asked twice."
    )
    parser.add_argument("url", help="http://HOST:PORT (REST) or grpc://HOST:PORT; https, grpcs")
    parser.add_argument(
        "--rate", type=_number, required=True, metavar="N", help="requests per second, on average"
    )
    parser.add_argument(
        "--target",
        type=duration,
        default=0.175,
        metavar="TIME",
        help="in which an answer is to be there, as 175ms or 0.5s (default: 175ms)",
    )
    parser.add_argument(
        "--duration", type=duration, default=30.0, metavar="TIME", help="counted (default: 30s)"
    )
    parser.add_argument(
        "--warm", type=duration, default=2.0, metavar="TIME", help="before that (default: 2s)"
    )
    parser.add_argument(
        "--patience",
        type=duration,
        default=5.0,
        metavar="TIME",
        help="after which a client hangs up (default: 5s)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="PATH",
        help="image, or folder of them, sent in turn (default: street scenes, drawn)",
    )
    parser.add_argument(
        "--size",
        type=_size,
        default=(360, 480),
        metavar="WxH",
        help="of the drawn ones, width and height (default: 480x360)",
    )
    parser.add_argument("--model", metavar="NAME", help="of several (default: the default one)")
    parser.add_argument("--model-version", metavar="N", help="of the model (default: the newest)")
    parser.add_argument("--output", default="label_map", help="asked for (default: label_map)")
    parser.add_argument(
        "--scale", type=scale, default="auto", metavar="SIZE", help="as of `fcn predict`"
    )
    parser.add_argument(
        "--deadline",
        type=duration,
        metavar="TIME",
        help="told to the server, which drops what cannot make it (default: none)",
    )
    add_api_key_file(parser, "URL")
    add_tls(parser, "URL")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the arrivals")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a PNG of the answers")
    parser.add_argument(
        "--min-share",
        type=share,
        metavar="X",
        help="exit with 1 if less than this share, 0 to 1, is answered within the target",
    )
    parser.add_argument("--json", action="store_true", help="write one JSON object")


def run(args: argparse.Namespace) -> int:
    """Raises: FcnError, UnusableKey, OSError."""
    import asyncio
    import json
    from importlib.util import find_spec

    from cli._load import Answer, Target, images_of, open_loop, summary
    from cli._simulation import poisson
    from fcn_client.errors import InvalidInput
    from fcn_client.progress import progress_bar
    from fcn_client.types import SegmentOptions, Timings

    if args.plot is not None and not args.plot.parent.is_dir():
        raise InvalidInput(f"--plot {args.plot}: there is no folder {args.plot.parent}")
    options: SegmentOptions = {
        "model": args.model,
        "version": args.model_version,
        "scale": args.scale,
        "deadline_ms": None if args.deadline is None else 1000 * args.deadline,
    }
    key = read_api_key(args.api_key_file)
    images = images_of(args.images, args.size)
    until_s = args.warm + args.duration
    due = poisson(args.rate, until_s, args.seed)
    shown = not args.json and sys.stderr.isatty() and find_spec("tqdm") is not None

    async def load() -> list[Answer]:
        target = Target(args.url, args.output, options, key, tls_of(args))

        async def ask(number: int) -> Timings:
            return await target.segment(images[number % len(images)], args.patience)

        try:
            # What fails here fails with its own words, and the first of a size takes longer.
            await target.segment(images[0], _PROBE_S)
            with progress_bar(shown, len(due)) as bar:
                return await open_loop(ask, due, patience_s=args.patience, answered=bar.update)
        finally:
            await target.close()

    answers = asyncio.run(load())
    found: dict[str, Any] = {
        "url": args.url,
        "rate": args.rate,
        "seconds": args.duration,
        "target_ms": 1000 * args.target,
        "images": len(images),
        "image_bytes": round(sum(map(len, images)) / len(images)),
        **summary(answers, since_s=args.warm, until_s=until_s, target_s=args.target),
    }
    if args.plot is not None:
        from cli._load_plot import write_plot

        counted = [answer for answer in answers if answer.due_s >= args.warm]
        write_plot(args.plot, counted, args.target, _headline(found))
    print(json.dumps(found) if args.json else "\n".join(_lines(found)))
    if (lag_ms := found["lag_p99_ms"] or 0.0) > _LAG_SHARE * found["target_ms"]:
        print(
            f"fcn: requests were sent up to {lag_ms:g} ms late (p99), so this machine is part of "
            "what was measured: ask from another one, or at a lower --rate",
            file=sys.stderr,
        )
    reached = found["share_within_target"] or 0.0
    if args.min_share is not None and reached < args.min_share:
        print(
            f"fcn: {reached:.2%} within the target, less than --min-share {args.min_share:g}",
            file=sys.stderr,
        )
        return 1
    return 0


def _headline(found: dict[str, Any]) -> str:
    load = f"{found['rate']:g} images/s for {found['seconds']:g} s"
    if not found["sent"]:
        return f"{load}: none was due"
    return f"{load}: {found['share_within_target']:.1%} within {found['target_ms']:g} ms"


def _lines(found: dict[str, Any]) -> list[str]:
    """Makes the report."""
    latency = {name: _shown(ms) for name, ms in found["latency_ms"].items()}
    stages = (f"{stage} {_shown(p['p50'])}" for stage, p in found["server_ms"].items())
    errors = ", ".join(f"{kind} {count:,}" for kind, count in found["errors"].items())
    reached = found["share_within_target"]
    return [
        f"sent:     {found['sent']:,} in {found['seconds']:g} s, {found['offered_per_s']:g}/s",
        f"answered: {found['answered']:,}, {found['answered_per_s']:g}/s",
        f"target:   {'-' if reached is None else f'{reached:.2%}'} of all within "
        f"{found['target_ms']:g} ms, goodput {found['goodput_per_s']:g}/s",
        f"latency:  {', '.join(f'{name} {ms}' for name, ms in latency.items())} ms",
        f"server:   {', '.join(stages)} ms (medians)",
        f"errors:   {errors or 'none'}",
    ]


def _shown(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:.1f}"


def duration(text: str) -> float:
    """Reads a time with its unit, in seconds. Raises: ArgumentTypeError."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m)", text)
    value = float(found[1]) * {"ms": 0.001, "s": 1, "m": 60}[found[2]] if found else 0.0
    if not 0.001 <= value <= 86400:
        raise argparse.ArgumentTypeError(
            f"{text}: want a time with its unit, as 175ms, 30s or 5m, from 1ms to a day"
        )
    return value


def _number(text: str) -> float:
    """Reads a rate. Raises: ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text}: want a number above 0")
    return value


def _size(text: str) -> tuple[int, int]:
    """Reads WIDTHxHEIGHT as (height, width). Raises: ArgumentTypeError."""
    found = re.fullmatch(r"(\d{2,5})x(\d{2,5})", text)
    if not found or min(int(found[1]), int(found[2])) < 16:
        raise argparse.ArgumentTypeError(f"{text}: want WIDTHxHEIGHT, as 480x360, 16 at least")
    return int(found[2]), int(found[1])
