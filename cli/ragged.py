"""`fcn ragged`"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "let images of several sizes share a batch of an exported model, for GPUs"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a model.onnx that `fcn export` wrote")
    parser.add_argument("out", type=Path, help="where the ragged one goes, as its next version")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--json", action="store_true", help="the report as JSON")


def run(args: argparse.Namespace) -> int:
    import json

    from model.ragged.file import make_ragged

    report = make_ragged(args.model, args.out, overwrite=args.overwrite)
    if args.json:
        print(json.dumps(report.to_dict(), indent=2))
        return 0
    sizes = ", ".join(f"{height}x{width}" for height, width in report.sizes)
    print(f"{report.path}: {sizes} in one batch, compared with each alone")
    print(f"labels agree on {report.label_agreement:.4%} of the pixels")
    if report.largest_logit_difference is not None:
        print(f"logits differ by at most {report.largest_logit_difference:.1e} (relative)")
    return 0
