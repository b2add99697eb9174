"""`fcn export`"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write a checkpoint as an ONNX file that the server loads"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="best.pt or last.pt of a run; or an exported fp32 file, which is exported anew",
    )
    parser.add_argument(
        "--repository", type=Path, default=Path("model_repository"), help="(model_repository)"
    )
    parser.add_argument("--name", help="model name (the recipe's)")
    parser.add_argument("--version", type=int, help="(one above the highest there is)")
    parser.add_argument("--logits", action="store_true", help="add the logits as a second output")
    parser.add_argument(
        "--winograd",
        nargs="+",
        default=[],
        metavar="LAYER",
        help="EXPERIMENTAL: compute these layers with half the multiplications; for 3x3 and 7x7 "
        "layers of 512 channels or more that `fcn quantize` then makes 8-bit, in OpenVINO. How "
        "near the labels stay is known for random weights only. The file grows",
    )
    parser.add_argument(
        "--scores", type=Path, help="JSON from `fcn evaluate --json`, for contract and card"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing version")


def run(args: argparse.Namespace) -> int:
    from training.publish import publish

    path, report = publish(
        args.checkpoint,
        args.repository,
        name=args.name,
        version=args.version,
        logits=args.logits,
        winograd=args.winograd,
        scores=args.scores,
        overwrite=args.overwrite,
    )
    sizes = ", ".join(f"{n}x{h}x{w}" for n, h, w in report.sizes)
    print(f"{path}: checked against PyTorch at {sizes}")
    print(f"labels agree on {report.label_agreement:.4%} of the pixels")
    if report.largest_logit_difference is not None:
        print(f"logits differ by at most {report.largest_logit_difference:.1e} (relative)")
    elif report.classes == 1:
        print("warning: these are all of one class, which proves little; --logits compares more")
    return 0
