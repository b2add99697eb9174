"""Arguments of `fcn predict --ray`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli._arguments import positive

if TYPE_CHECKING:
    from fcn_client.predict import Outcome

_WORKER: tuple[tuple[str, float, str], ...] = (
    ("--ray-cpus", 1.0, "cores of each worker (default: 1)"),
    ("--ray-gpus", 0.0, "GPUs of each worker, or a part of one: 0.5 (default: 0)"),
)


def add_ray(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "bulk work with Ray",
        "Many images, over the cores of this machine or the nodes of a Ray cluster, which all see "
        "the output folder and the model. The source may also be Parquet, or an address that "
        "fsspec knows. errors.csv in the output folder has a row for each image that failed.",
    )
    group.add_argument("--ray", action="store_true", help="have Ray Data's workers do it")
    group.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="Ray cluster to join: auto for that of this machine, or HOST:PORT "
        "(default: one is started here, for the job)",
    )
    group.add_argument(
        "--ray-workers",
        type=positive,
        metavar="N",
        help="workers (default: as many as the cluster has room for)",
    )
    for flag, default, text in _WORKER:
        group.add_argument(flag, type=_share, default=default, metavar="N", help=text)
    group.add_argument(
        "--image-column",
        default="image",
        metavar="NAME",
        help="column of Parquet that has the images (default: image)",
    )


def predict_on_ray(
    args: argparse.Namespace, write: Sequence[str], keep: Sequence[str], *, progress: bool
) -> Outcome:
    """Raises: FcnError, ServiceError, SettingsError, OSError."""
    from cli._bulk import Job, predict
    from cli._bulk_sources import Source
    from fcn_client.errors import InvalidInput
    from service.settings import load_settings

    if args.url:
        raise InvalidInput("--ray runs the model itself: leave --url out, or --ray")
    if args.frames is not None or args.every != 1:
        raise InvalidInput("--frames and --every are for frames: leave them out, or --ray")
    settings = load_settings()
    source = args.source if "://" in args.source else str(Path(args.source).resolve())
    job = Job(
        (args.local or settings.model_repository).resolve(),
        settings,
        args.model,
        args.model_version,
        tuple(keep),
        args.scale,
        args.ray_cpus,
        args.ray_gpus,
        args.in_flight,
    )
    return predict(
        Source(source, args.image_column),
        args.out.resolve(),
        job,
        address=args.ray_address,
        workers=args.ray_workers,
        recursive=args.recursive,
        write=write,
        alpha=args.alpha,
        afresh=args.afresh,
        progress=progress,
    )


def _share(text: str) -> Any:
    """Reads how much of something a worker has. Raises: ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1024.0:
        raise argparse.ArgumentTypeError(f"{text}: want a number, such as 0.5, 1 or 2")
    return value
