"""`fcn data` says which data sets there are, and what of one is on disk."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cli._arguments import positive

if TYPE_CHECKING:
    from training.datasets.make.sources import Source

HELP = "list the data sets that can be read, check one on disk, or make one of your own files"


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

    _configure_make(
        actions.add_parser("make", help="turn masks or polygons into a folder data set")
    )


def _configure_make(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", metavar="OUT", type=Path, help="the folder to write, new")
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--masks", type=Path, metavar="DIR", help="masks with the images' names")
    kinds.add_argument("--coco", type=Path, metavar="FILE", help="polygons: COCO's JSON")
    kinds.add_argument(
        "--yolo", type=Path, metavar="DIR", help="polygons: YOLO's text files, with --names"
    )
    kinds.add_argument("--voc", type=Path, metavar="DIR", help="JPEGImages and masks beside them")
    parser.add_argument("--images", type=Path, metavar="DIR", help="the images; not with --voc")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="class list of the masks' colours or ids"
    )
    parser.add_argument(
        "--binary", metavar="NAME", help="masks of 0 and 255: 255 is this class, 0 the background"
    )
    parser.add_argument("--names", type=Path, metavar="FILE", help="YOLO's data.yaml")
    parser.add_argument(
        "--voc-masks",
        default="SegmentationClass",
        metavar="FOLDER",
        help="of --voc, SegmentationClassAug say (default: SegmentationClass)",
    )
    parser.add_argument(
        "--lists", type=Path, nargs="+", default=[], metavar="FILE",
        help="text files that name the images of a split, whose name is the file's: train.txt",
    )  # fmt: skip
    for split, default in (("val", "0.2"), ("test", None)):
        parser.add_argument(
            f"--{split}",
            default=default,
            metavar="SHARE|PATTERN",
            help=f"without --lists: this share at random, or the images with such names, as "
            f"'film3_*' (default: {default or 'none'})",
        )
    parser.add_argument("--seed", type=int, default=0, help="of the random shares (default: 0)")
    parser.add_argument(
        "--longest-side",
        type=positive,
        metavar="PIXELS",
        help="scale larger images down, with their masks",
    )
    parser.add_argument("--name", metavar="TEXT", help="of the data set (default: OUT's)")
    parser.add_argument(
        "--licence", default="not stated", metavar="TEXT", help="goes into models trained on it"
    )
    parser.add_argument("--json", action="store_true", help="write one JSON object")


def run(args: argparse.Namespace) -> int:
    """List the data sets, check one or make one. Raises: DatasetError."""
    return {"list": _list, "check": _check, "make": _make}[args.action](args)


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


def _make(args: argparse.Namespace) -> int:
    import json

    from training.datasets import DatasetError
    from training.datasets.make.make import make
    from training.datasets.make.splits import by_lists, by_rules

    source = _source(args)
    stems = [image.stem for image, _read in source.items]
    if not stems:
        reasons = ", ".join(f"{reason} ({len(names)})" for reason, names in source.dropped.items())
        raise DatasetError(f"no image has a label: {reasons}")
    rules = {split: rule for split in ("test", "val") if (rule := getattr(args, split))}
    splits = by_lists(stems, args.lists) if args.lists else by_rules(stems, rules, args.seed)
    made = make(
        source,
        splits,
        args.root,
        name=args.name or args.root.name,
        licence=args.licence,
        longest_px=args.longest_side,
    )
    print(json.dumps(made.to_dict()) if args.json else made.table())
    return 0


def _source(args: argparse.Namespace) -> Source:
    """Open what the flags name. Raises: DatasetError."""
    from training.datasets import DatasetError
    from training.datasets.make.sources import from_coco, from_masks, from_voc, from_yolo

    if args.voc is not None:
        return from_voc(args.voc, args.voc_masks, args.classes)
    if args.images is None:
        raise DatasetError("say where the images are: --images DIR")
    if args.masks is not None:
        return from_masks(args.images, args.masks, args.classes, args.binary)
    if args.coco is not None:
        return from_coco(args.images, args.coco)
    if args.names is None:
        raise DatasetError("YOLO's polygons need the class names: --names data.yaml")
    return from_yolo(args.images, args.yolo, args.names)
