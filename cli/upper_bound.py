"""`fcn upper-bound` scores labels at a lower resolution."""

from __future__ import annotations

import argparse
from pathlib import Path

from cli._arguments import positive

HELP = "mean IU that answers at a coarser resolution can reach on a data set"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dataset", metavar="DATA", help="format and class list: camvid, folder, ..."
    )
    parser.add_argument("--data-root", type=Path, required=True, metavar="DIR")
    parser.add_argument("--split", default="val", help="of the data set (default: val)")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="class list instead of the data set's own"
    )
    parser.add_argument(
        "--factors",
        type=positive,
        nargs="+",
        default=[128, 64, 32, 16, 8, 4],
        metavar="N",
        help="pixels of a cell's side (default: the paper's 128 64 32 16 8 4)",
    )
    parser.add_argument(
        "--method",
        choices=("majority", "nearest"),
        default="majority",
        help="a cell's class: of most of its pixels (default), or of its middle pixel",
    )
    parser.add_argument(
        "--absent",
        choices=("exclude_gt", "nan", "zero"),
        default="nan",
        help="classes without a labelled pixel, as in fcn evaluate (default: nan)",
    )
    parser.add_argument("--json", action="store_true", help="every score as JSON, in 0 to 1")


def run(args: argparse.Namespace) -> int:
    import json

    from training.analysis.upper_bound import UpperBoundReport, upper_bounds
    from training.datasets import open_dataset

    data = open_dataset(args.dataset, args.data_root, args.split, args.classes, labels_only=True)
    confusions = upper_bounds(data, args.factors, args.method)
    report = UpperBoundReport(data, args.method, args.absent, confusions)
    print(json.dumps(report.to_dict(), indent=2) if args.json else report.table())
    return 0
