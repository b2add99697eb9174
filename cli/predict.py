"""Implements `fcn predict`, which writes label maps, overlays and class shares of files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cli._api_key import add_api_key_file, read_api_key
from cli._arguments import positive, scale, seconds
from cli._ray_arguments import add_ray, predict_on_ray
from cli._tls import add_tls, tls_of

if TYPE_CHECKING:
    from fcn_client.predict import Outcome

HELP = "segment an image, a folder, a video or a camera, with a server or in this process"
_SHOWN_FAILURES = 20
_DEADLINE_S = 120.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Segment an image, a folder of them, a video frame by frame, or what a camera shows. "
        "Writes into the output folder label_maps/, overlays/ and shares.csv, the share of each "
        "class in each image. The same command again does what is missing."
    )
    parser.add_argument(
        "source",
        help="image, video, or folder of them; rtsp://HOST/PATH, or /dev/video0; with --ray also "
        "Parquet, and an address as s3://BUCKET/PATH",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--url",
        help="server to ask: http://HOST:PORT (REST) or grpc://HOST:PORT; or several, with commas",
    )
    where.add_argument(
        "--local",
        type=Path,
        metavar="PATH",
        help="model file or model repository to run in this process, where no --url is given "
        "[FCN_MODEL_REPOSITORY, default: model_repository]",
    )
    add_api_key_file(parser, "--url")
    add_tls(parser, "--url")
    parser.add_argument("--model", metavar="NAME", help="of several (default: the default one)")
    parser.add_argument("--model-version", metavar="N", help="of the model (default: the newest)")
    parser.add_argument(
        "--classes",
        default="",
        metavar="A,B",
        help="keep only these classes, by name or id; other pixels become void (default: all)",
    )
    parser.add_argument(
        "--scale",
        type=scale,
        default="auto",
        metavar="SIZE",
        help="at what size the network sees images: auto, at one that the model knows; none, at "
        "their own; or how many pixels the longer side may have (default: auto)",
    )
    parser.add_argument(
        "--write",
        default="label_map,overlay",
        metavar="KINDS",
        help="of label_map, overlay and color, separated by commas (default: label_map,overlay)",
    )
    parser.add_argument(
        "--alpha", type=float, default=0.5, help="opacity of overlays, 0 to 1 (default: 0.5)"
    )
    parser.add_argument(
        "--annotations",
        default="",
        metavar="KINDS",
        help="of coco and label-studio, separated by commas: the label maps for annotation tools, "
        "too (default: none)",
    )
    parser.add_argument(
        "--image-url",
        metavar="PREFIX",
        help="where Label Studio finds the images: what stands before their paths in the source "
        "folder (default: its local files)",
    )
    parser.add_argument("--recursive", action="store_true", help="folders in the folder, too")
    parser.add_argument(
        "--every", type=positive, default=1, metavar="N", help="of a video, each N-th frame"
    )
    parser.add_argument(
        "--frames",
        type=positive,
        metavar="N",
        help="stop after N images or frames (default: at the end, which a camera does not have)",
    )
    parser.add_argument(
        "--in-flight",
        type=positive,
        default=4,
        metavar="N",
        help="images worked on at a time (default: 4)",
    )
    parser.add_argument(
        "--deadline",
        type=seconds,
        metavar="SECONDS",
        help="for a server's answer to one image, which is asked for once more after that; then "
        f"the image has failed, and the others go on (default: {_DEADLINE_S:g})",
    )
    parser.add_argument(
        "--afresh", action="store_true", help="do everything again, complete or not"
    )
    parser.add_argument(
        "--json", action="store_true", help="write one JSON object, and no progress bar"
    )
    add_ray(parser)


def run(args: argparse.Namespace) -> int:
    """Raises: FcnError, UnusableKey, ServiceError, SettingsError, OSError."""
    import json
    import time
    from importlib.util import find_spec

    from fcn_client.errors import InvalidInput
    from fcn_client.predict import IMAGE_FOLDERS
    from fcn_client.predict.annotations import FORMATS, LOCAL_FILES, annotate
    from fcn_client.predict.inputs import printable
    from fcn_client.predict.live import is_live

    write = [kind for kind in args.write.split(",") if kind]
    if not write or not set(write) <= set(IMAGE_FOLDERS):
        raise InvalidInput(f"--write {args.write}: use {', '.join(IMAGE_FOLDERS)}, one or several")
    annotations = [kind for kind in args.annotations.split(",") if kind]
    if not set(annotations) <= set(FORMATS):
        raise InvalidInput(f"--annotations {args.annotations}: use {', '.join(FORMATS)}, or both")
    if annotations and "label_map" not in write:
        raise InvalidInput("--annotations is made from label maps: let --write have label_map")
    if args.image_url is not None and "label-studio" not in annotations:
        raise InvalidInput("--image-url is for --annotations label-studio: give both")
    if annotations and not args.ray and is_live(args.source):
        raise InvalidInput("--annotations is for files: a camera's images are not kept")
    keep = [name.strip() for name in args.classes.split(",") if name.strip()]
    began = time.perf_counter()
    of_servers = ("api_key_file", "deadline", "ca", "cert", "key")
    if not args.url and (given := [name for name in of_servers if getattr(args, name)]):
        flag = f"--{given[0].replace('_', '-')}"
        raise InvalidInput(f"{flag} is for a server: give its --url, too")
    # tqdm is an extra: without it there is no bar.
    shown = not args.json and sys.stderr.isatty() and find_spec("tqdm") is not None
    outcome = (predict_on_ray if args.ray else _predict)(args, write, keep, progress=shown)
    labeller, folder, summary = outcome.labeller, outcome.folder, outcome.summary
    if annotations:
        annotate(folder, annotations, args.image_url or LOCAL_FILES)
        summary.failures += [(*image, why) for image, why in folder.unreadable.items()]
    if args.json:
        report = {
            "out": printable(str(args.out)),
            "model": labeller.name,
            "version": labeller.version,
            "done": summary.done,
            "skipped": summary.skipped,
            "replaced": summary.replaced,
            "kept": summary.kept,
            "ignored": outcome.ignored,
            "dropped": outcome.dropped,
            "failed": [
                {"source": source, "frame": frame, "error": error}
                for source, frame, error in summary.failures
            ],
            "seconds": round(time.perf_counter() - began, 3),
        }
        print(json.dumps(report))
    else:
        for name, frame, why in summary.failures[:_SHOWN_FAILURES]:
            print(
                f"fcn: {name}{'' if frame is None else f' frame {frame}'}: {why}", file=sys.stderr
            )
        if (more := len(summary.failures) - _SHOWN_FAILURES) > 0:
            print(f"fcn: and {more} more, which --json lists, too", file=sys.stderr)
        replaced = f" ({summary.replaced} in place of others)" if summary.replaced else ""
        kept = f"; {summary.kept} of other runs are there, too" if summary.kept else ""
        dropped = outcome.dropped
        left_out = f"; {dropped} frames came while it was busy, and were left out" * (dropped > 0)
        print(
            f"{printable(str(args.out))}: {summary.done} done{replaced}, {summary.skipped} "
            f"complete before, {len(summary.failures)} failed, by {labeller.name} version "
            f"{labeller.version}{kept}{left_out}"
        )
    return 1 if summary.failures else 0


def _predict(
    args: argparse.Namespace, write: Sequence[str], keep: Sequence[str], *, progress: bool
) -> Outcome:
    """Asks a server, or runs the model in this process. Raises: as `run`."""
    from contextlib import closing
    from itertools import islice

    from fcn_client.predict import Folder, Labeller, Outcome, RemoteLabeller, find, predict
    from fcn_client.predict.inputs import Found
    from fcn_client.predict.live import Live, is_live

    found: Found | Live
    if is_live(args.source):
        found = Live(args.source)
    else:
        found = find(Path(args.source), recursive=args.recursive, leave_out=args.out)
    labeller: Labeller
    if args.url:
        from fcn_client import FcnClient

        deadline_s = args.deadline or _DEADLINE_S
        key = read_api_key(args.api_key_file)
        client = FcnClient(args.url, timeout_s=deadline_s, api_key=key, **tls_of(args))
        labeller = RemoteLabeller(
            client, args.model, args.model_version, keep, deadline_s, args.scale
        )
    else:
        from cli._local import LocalLabeller
        from service.settings import load_settings

        settings = load_settings()
        source = args.local or settings.model_repository
        labeller = LocalLabeller(source, settings, args.model, args.model_version, keep, args.scale)
    with closing(labeller):
        folder = Folder(
            args.out, labeller, write=write, alpha=args.alpha, keep=keep, afresh=args.afresh
        )
        total = found.count() if progress and args.every == 1 else None
        if args.frames is not None:
            total = min(args.frames, total or args.frames)
        summary = predict(
            islice(found.items(args.every), args.frames),
            labeller,
            folder,
            in_flight=args.in_flight,
            progress=progress,
            total=total,
        )
    dropped = found.dropped if isinstance(found, Live) else 0
    return Outcome(labeller, folder, summary, found.ignored, dropped)
