"""Implements `fcn scale`, which reckons what so many images a day need."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "reckon replicas, cores, network and price for so many images a day"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Simulate replicas behind three balancers with measured times, and print how many keep 99 "
        "of 100 answers within the target, with cores, network, storage and price. What it reckons "
        "with is a table, cli/scale.toml; --table changes what it names."
    )
    parser.add_argument("--images-per-day", type=float, required=True, metavar="N")
    parser.add_argument("--image-kb", type=float, required=True, metavar="KB", help="of an upload")
    parser.add_argument(
        "--output", default="label_map", help="what is asked for (default: label_map)"
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="TOML with numbers of your own")
    parser.add_argument("--json", action="store_true", help="write one JSON object")


def run(args: argparse.Namespace) -> int:
    """Raises: InvalidInput."""
    import json

    from cli._scale import lines, load_table, reckon

    table = load_table(args.table)
    found = reckon(table, args.images_per_day, args.image_kb, args.output)
    if args.json:
        print(json.dumps(found))
    else:
        print("\n".join(lines(found, table["load"]["target_ms"])))
    return 0
