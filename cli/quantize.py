"""`fcn quantize`"""

from __future__ import annotations

import argparse
from pathlib import Path

from cli._arguments import share

HELP = "write the int8 form of an exported model, for CPUs, or its fp16 form, for GPUs"

_MIN_AGREEMENT = {"int8": 0.98, "fp16": 0.99}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="an fp32 model.onnx that `fcn export` wrote")
    parser.add_argument(
        "--to",
        choices=("int8", "fp16"),
        default="int8",
        help="int8 for CPUs with 8-bit arithmetic, fp16 for GPUs (default: int8)",
    )
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument(
        "--calibrate", type=Path, metavar="FOLDER", help="images like those to be served"
    )
    images.add_argument(
        "--data-root",
        type=Path,
        metavar="DIR",
        help="a data set: calibrates on its split train and compares with fp32 on val",
    )
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="format and class list, as `fcn data list` has them (default: folder if DIR has a "
        "classes.yaml, else camvid)",
    )
    parser.add_argument(
        "--score",
        nargs="+",
        default=[],
        metavar="SPLIT",
        help="with --data-root: splits whose scores are measured and go into the contract",
    )
    parser.add_argument(
        "--out", type=Path, help="(model.int8.onnx or model.fp16.onnx beside the model)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--images", type=_positive, default=32, metavar="N", help="to calibrate with (default: 32)"
    )
    parser.add_argument(
        "--compare",
        type=_positive,
        default=8,
        metavar="N",
        help="images on which layers are judged (default: 8)",
    )
    parser.add_argument(
        "--method",
        choices=("minmax", "percentile", "entropy"),
        help="how ranges are chosen (int8 only; default: minmax)",
    )
    parser.add_argument(
        "--min-agreement",
        type=share,
        metavar="X",
        help="of the labels this share is the fp32 model's: for it, layers are left in float, the "
        "most sensitive first (int8), or nothing is written (fp16) (default: 0.98, fp16 0.99)",
    )
    parser.add_argument(
        "--keep-float", nargs="+", default=[], metavar="LAYER", help="left in float in any case"
    )
    parser.add_argument("--winograd", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument(
        "--reduce-range",
        action="store_true",
        help="7-bit weights: for CPUs with AVX2 but no VNNI, where 8-bit sums overflow (int8 only)",
    )
    parser.add_argument(
        "--headroom",
        type=_factor,
        metavar="X",
        help="layers whose values, so many times as large, would leave fp16's range stay in fp32 "
        "(fp16 only; default: 4)",
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON")


def run(args: argparse.Namespace) -> int:
    import json

    from model.export.fp32_model import QuantizeError
    from training.quantization import (
        Calibration,
        Fp16Report,
        QuantizeReport,
        convert_file_to_fp16,
        quantize_file,
    )

    _check_options(args, QuantizeError)
    if args.calibrate:
        calibration = Calibration.from_folder(args.calibrate, args.images, args.compare)
    else:
        calibration = Calibration.from_dataset(
            args.dataset, args.data_root, args.images, args.compare, args.score
        )
    target = args.out or args.model.with_name(f"model.{args.to}.onnx")
    common = {
        "min_agreement": _MIN_AGREEMENT[args.to]
        if args.min_agreement is None
        else args.min_agreement,
        "keep_float": args.keep_float,
        "overwrite": args.overwrite,
    }
    report: QuantizeReport | Fp16Report
    if args.to == "fp16":
        report = convert_file_to_fp16(
            args.model, target, calibration, headroom=args.headroom or 4.0, **common
        )
    else:
        report = quantize_file(
            args.model,
            target,
            calibration,
            method=args.method or "minmax",
            reduce_range=args.reduce_range,
            **common,
        )
    print(json.dumps(report.to_dict(), indent=2) if args.json else report.table())
    return 0


def _check_options(args: argparse.Namespace, error: type[ValueError]) -> None:
    """Raises: `error` for an option of the other precision."""
    given = {
        "--method": (args.method is not None, "int8"),
        "--reduce-range": (args.reduce_range, "int8"),
        "--headroom": (args.headroom is not None, "fp16"),
    }
    for option, (is_given, precision) in given.items():
        if is_given and args.to != precision:
            raise error(f"{option} is for --to {precision}: leave it out")
    if args.winograd:
        raise error("--winograd is for `fcn export` now: export the checkpoint again with it")
    if args.calibrate and args.score:
        raise error("--score needs labels: name a data set with --data-root")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: want 1 or more")
    return value


def _factor(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{text}: want 1 to 1000")
    return value
