"""`fcn quantize`"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write the int8 form of an exported model, for CPUs with 8-bit arithmetic"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="an fp32 model.onnx that `fcn export` wrote")
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument(
        "--calibrate", type=Path, metavar="FOLDER", help="pictures like those to be served"
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
    parser.add_argument("--out", type=Path, help="(model.int8.onnx beside the model)")
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
        default="minmax",
        help="how ranges are chosen (default: minmax)",
    )
    parser.add_argument(
        "--min-agreement",
        type=_share,
        default=0.98,
        metavar="X",
        help="layers are left in float, the most sensitive first, until this share of the labels "
        "is the fp32 model's (default: 0.98)",
    )
    parser.add_argument(
        "--keep-float", nargs="+", default=[], metavar="LAYER", help="left in float in any case"
    )
    parser.add_argument(
        "--winograd",
        nargs="+",
        default=[],
        metavar="LAYER",
        help="computed with half the multiplications: for 3x3 and 7x7 layers of 512 channels or "
        "more, in OpenVINO; the file grows",
    )
    parser.add_argument(
        "--reduce-range",
        action="store_true",
        help="7-bit weights: for CPUs with AVX2 but no VNNI, where 8-bit sums overflow",
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON")


def run(args: argparse.Namespace) -> int:
    import json

    from model.quantize import QuantizeError
    from training.datasets import open_dataset
    from training.quantize import dataset_images, folder_images, quantize_file, spread

    scored = []
    if args.calibrate:
        if args.score:
            raise QuantizeError("--score needs labels: name a data set with --data-root")
        images = folder_images(args.calibrate)
        calibration, comparison = spread(images, args.images), spread(images[::-1], args.compare)
    else:
        name = args.dataset or (
            "folder" if (args.data_root / "classes.yaml").is_file() else "camvid"
        )
        train, val = (open_dataset(name, args.data_root, split) for split in ("train", "val"))
        calibration = spread(dataset_images(train), args.images)
        comparison = spread(dataset_images(val), args.compare)
        scored = [open_dataset(name, args.data_root, split) for split in args.score]
    report = quantize_file(
        args.model,
        args.out or args.model.with_name("model.int8.onnx"),
        calibration,
        comparison,
        method=args.method,
        min_agreement=args.min_agreement,
        keep_float=args.keep_float,
        winograd=args.winograd,
        reduce_range=args.reduce_range,
        scored=scored,
        overwrite=args.overwrite,
    )
    print(json.dumps(report.to_dict(), indent=2) if args.json else report.table())
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: want 1 or more")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: want 0 to 1, as in 0.98")
    return value
