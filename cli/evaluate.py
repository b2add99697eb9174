"""`fcn evaluate` scores a network or a server on a data set."""

from __future__ import annotations

import argparse
from pathlib import Path

from cli._api_key import add_api_key_file, read_api_key
from cli._arguments import positive, seconds, share
from cli._tls import add_tls, tls_of
from service.config import ENGINES, PRECISIONS

HELP = "score a checkpoint, an ONNX file or a running server on a data set"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        help="a checkpoint (.pt), an exported model (.onnx), or a server: http://HOST:PORT (REST) "
        "or grpc://HOST:PORT, which gets the image files themselves",
    )
    parser.add_argument("--data-root", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="format and class list, as `fcn data list` has them (default: folder if DIR has a "
        "classes.yaml, else camvid)",
    )
    parser.add_argument("--split", default="test", help="of the data set (default: test)")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="class list instead of the data set's own"
    )
    parser.add_argument(
        "--model", metavar="NAME", help="of a server with several; also URL?model=NAME"
    )
    add_api_key_file(parser, "SOURCE")
    add_tls(parser, "SOURCE")
    parser.add_argument(
        "--deadline",
        type=seconds,
        default=120.0,
        metavar="SECONDS",
        help="for a server's answer to one image, which is asked for once more after that; then "
        "the image is reported and not scored (default: 120)",
    )
    parser.add_argument(
        "--in-flight",
        type=positive,
        default=4,
        metavar="N",
        help="files a server is asked for at a time (default: 4)",
    )
    parser.add_argument(
        "--threads",
        type=positive,
        default=0,
        metavar="N",
        help="CPU threads for a checkpoint or an ONNX file (default: the library's choice)",
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        help="run an ONNX file as a server on the CPU would, in this engine",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="the same, in this precision: int8 and fp16 are the files beside the one given",
    )
    parser.add_argument(
        "--min-mean-iu",
        type=share,
        metavar="X",
        help="exit with 1 if the mean IU, 0 to 1, is below X",
    )
    parser.add_argument(
        "--absent",
        choices=("exclude_gt", "nan", "zero"),
        default="nan",
        help="a class without a labelled pixel leaves the means (exclude_gt), counts as 0 if it is "
        "predicted (nan, default: as the paper's authors score), or counts as 0 (zero)",
    )
    parser.add_argument(
        "--mask",
        "--shown",  # its name before
        dest="mask",
        choices=("all", "foreground", "background", "shape"),
        default="all",
        help="pixels of the images to keep: the rest is hidden by its label (default: all)",
    )
    parser.add_argument(
        "--flip",
        action="store_true",
        help="predict each image mirrored, too, and average: a checkpoint only, not the paper's",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FOLDER",
        help="write FOLDER/index.html: scores with their uncertainty, confusion matrix, the worst "
        "and median images, timing. It holds images of the data set",
    )
    parser.add_argument(
        "--scales",
        type=_scales,
        default=(),
        metavar="A,B",
        help="score the images enlarged and reduced by these factors, too, as 0.5,1,2,4,8: a "
        "checkpoint or an ONNX file only. With --json, `fcn export --scores` reads the range",
    )
    parser.add_argument(
        "--every",
        type=positive,
        default=1,
        metavar="N",
        help="with --scales: of the split, each N-th image (default: 1)",
    )
    parser.add_argument(
        "--write-range",
        action="store_true",
        help="with --scales: write the range into the contract of the ONNX file SOURCE, and of the "
        "int8 and fp16 files beside it",
    )
    parser.add_argument("--json", action="store_true", help="scores as JSON, in 0 to 1")


def run(args: argparse.Namespace) -> int:
    import json
    import sys
    import time
    from contextlib import closing
    from functools import partial

    from training.analysis.masking import mask_images
    from training.datasets import guess_dataset, open_dataset
    from training.distributed import init_distributed
    from training.evaluation.audit import Audit
    from training.evaluation.evaluate import EvaluationError
    from training.evaluation.page import write_page
    from training.evaluation.report import Report
    from training.evaluation.scales import ScaleScore, known_range, score_scales, write_range
    from training.evaluation.targets import (
        EvaluationTarget,
        NetworkTarget,
        ServerTarget,
        open_target,
        predict_again,
        score,
    )

    if (args.write_range or args.every > 1) and not args.scales:
        raise EvaluationError("--every and --write-range are for --scales: give it, too")
    if args.write_range and not args.source.lower().endswith(".onnx"):
        raise EvaluationError(
            f"--write-range is for an ONNX file, and {args.source} is none: of a checkpoint, "
            "`fcn export --scores` writes the range"
        )
    name = args.dataset or guess_dataset(args.data_root, args.classes)
    with init_distributed() as world:
        data = open_dataset(name, args.data_root, args.split, args.classes)
        key = read_api_key(args.api_key_file)
        target: EvaluationTarget
        if args.engine or args.precision:
            from cli._engine import open_engine

            if args.model or key or args.flip:
                raise EvaluationError("--model, --api-key-file and --flip do not go with --engine")
            target = open_engine(
                Path(args.source), args.engine or "auto", args.precision or "auto", args.threads
            )
        else:
            target = open_target(
                args.source,
                model=args.model,
                threads=args.threads,
                api_key=key,
                tls=tls_of(args),
                deadline_s=args.deadline,
                flip=args.flip,
            )
        audit = Audit() if args.report else None
        started = time.perf_counter()
        with closing(target):
            evaluation = score(
                target, data, mask=args.mask, in_flight=args.in_flight, world=world, audit=audit
            )
            seconds = time.perf_counter() - started
            data = mask_images(data, args.mask)
            scales: tuple[ScaleScore, ...] = ()
            if args.scales and isinstance(target, ServerTarget):
                raise EvaluationError(
                    f"--scales is for a checkpoint or an ONNX file, and {args.source} is a server"
                )
            if args.scales and isinstance(target, NetworkTarget):
                scales = score_scales(target.predict, data, args.scales, every=args.every)
            report = Report(
                target.name,
                target.kind,
                data,
                evaluation,
                seconds,
                args.absent,
                args.mask,
                args.flip,
                scales,
            )
            if audit is not None:
                write_page(args.report, report, audit, partial(predict_again, target, data))
    if not world.is_main:
        return 0
    print(json.dumps(report.to_dict(), indent=2) if args.json else report.table())
    if args.write_range:
        for file in write_range(Path(args.source), known_range(scales)):
            print(f"fcn: {file} has the range", file=sys.stderr)
    if report.warning:
        print(f"fcn: warning: {report.warning}", file=sys.stderr)
    if not evaluation.complete:
        unscored = len(data) - evaluation.images
        print(f"fcn: {unscored} of {len(data)} images were not scored", file=sys.stderr)
    mean_iu = evaluation.confusion.scores(args.absent).mean_iu
    if args.min_mean_iu is not None and mean_iu < args.min_mean_iu:
        print(
            f"fcn: mean IU {mean_iu:.4f} is below --min-mean-iu {args.min_mean_iu}",
            file=sys.stderr,
        )
        return 1
    return 0 if evaluation.complete else 1


def _scales(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(0.01 <= value <= 100 for value in values):
        raise argparse.ArgumentTypeError(f"{text}: want factors from 0.01 to 100, as in 0.5,1,2,4")
    return values
