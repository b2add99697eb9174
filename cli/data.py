"""`fcn data` says which data sets there are, and what of one is on disk."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "list the data sets that can be read, or check one on disk (never downloads)"


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    listing = actions.add_parser("list", help="names, splits and where to get them")
    listing.add_argument("--json", action="store_true", help="write one JSON object")

    check = actions.add_parser(
        "check",
        help="what is found, what is missing and where to get it, with the licence; exit code 1 "
        "if it cannot be used",
    )
    check.add_argument("name", metavar="NAME", help="as `fcn data list` has it")
    check.add_argument("root", metavar="DIR", type=Path, help="the folder to look in")
    check.add_argument(
        "--split",
        dest="splits",
        action="append",
        default=[],
        metavar="NAME",
        help="only this one, which must be usable (repeatable; default: all, one must be)",
    )
    check.add_argument(
        "--classes", type=Path, metavar="FILE", help="class list instead of the data set's own"
    )
    check.add_argument(
        "--read-all", action="store_true", help="read every image and label, not one a split"
    )
    check.add_argument("--json", action="store_true", help="write one JSON object")


def run(args: argparse.Namespace) -> int:
    """List the data sets, or check one. Raises: DatasetError."""
    return _list(args) if args.action == "list" else _check(args)


def _list(args: argparse.Namespace) -> int:
    import json

    from training.datasets import DATASETS

    if args.json:
        rows = [
            {
                "name": name,
                "splits": dict(form.splits),
                "layout": form.layout,
                "where": form.where,
            }
            for name, form in DATASETS.items()
        ]
        print(json.dumps({"datasets": rows}))
        return 0
    for name, form in DATASETS.items():
        print(name)
        print(f"  splits  {', '.join(form.splits)}")
        print(f"  wants   {form.layout}")
        print(f"  from    {form.where}")
    return 0


def _check(args: argparse.Namespace) -> int:
    import json

    from training.datasets.check import check

    report = check(args.name, args.root, args.splits, classes=args.classes, read_all=args.read_all)
    print(json.dumps(report.to_dict()) if args.json else report.table())
    return 0 if report.usable else 1
