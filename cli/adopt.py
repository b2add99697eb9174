"""`fcn adopt`"""

from __future__ import annotations

import argparse
from pathlib import Path

from cli._arguments import positive, share

HELP = "make any ONNX segmentation network one that the server loads"

# As model.export.adopt has them, which is imported only when the command runs.
_PRESETS = (
    "imagenet", "caffe", "torchvision", "nyudv2", "siftflow", "tensorflow", "lite", "unit", "none",
)  # fmt: skip
_LAYOUTS = ("NCHW", "NHWC")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("network", type=Path, help="its ONNX file")
    parser.add_argument("--name", required=True, help="model name")
    parser.add_argument(
        "--classes",
        type=Path,
        required=True,
        metavar="YAML",
        help="class list in the network's order, with the data's name and licence",
    )
    parser.add_argument(
        "--repository", type=Path, default=Path("model_repository"), help="(model_repository)"
    )
    parser.add_argument("--version", type=positive, help="(one above the highest there is)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing version")
    parser.add_argument("--architecture", help="what the contract calls it (the file's name)")
    parser.add_argument("--logits", action="store_true", help="add the logits as a second output")

    pixels = parser.add_argument_group(
        "the image it takes", "a channel is (value * scale - mean) / std of a value in 0..255"
    )
    pixels.add_argument(
        "--preprocessing",
        "--normalise",
        choices=_PRESETS,
        help="imagenet: RGB as torchvision has it; unit: RGB / 255; none: RGB as it is; caffe: BGR "
        "minus the mean; or as a network trained here",
    )
    numbers = {"nargs": 3, "type": float, "metavar": ("A", "B", "C")}
    pixels.add_argument("--mean", **numbers, help="in the network's channel order")  # type: ignore[arg-type]
    pixels.add_argument("--std", **numbers, help="in the network's channel order")  # type: ignore[arg-type]
    pixels.add_argument("--scale", type=float, help="as 0.00392157 for values in 0..1")
    pixels.add_argument("--color-order", choices=("RGB", "BGR"))
    pixels.add_argument(
        "--size",
        nargs=2,
        type=positive,
        metavar=("HEIGHT", "WIDTH"),
        help="resize every image to it (the file's, if it has only one)",
    )
    pixels.add_argument(
        "--antialias",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="average where --size makes an image smaller, as Pillow and torchvision do; OpenCV "
        "does not (default: yes)",
    )
    pixels.add_argument(
        "--multiple-of",
        type=positive,
        metavar="PX",
        help="pad sides to multiples (the smallest power of two that runs)",
    )
    pixels.add_argument("--input-layout", choices=_LAYOUTS, help="(where the file shows 3)")

    answer = parser.add_argument_group("what it answers")
    answer.add_argument("--output", metavar="NAME", help="which output, where there are several")
    answer.add_argument(
        "--output-is",
        choices=("logits", "probabilities", "labels"),
        help="(as the graph and trial runs show)",
    )
    answer.add_argument("--output-kind", help=argparse.SUPPRESS)
    answer.add_argument(
        "--output-layout", choices=_LAYOUTS, help="of scores (where the classes' number fits)"
    )
    answer.add_argument(
        "--align-corners",
        action="store_true",
        help="scores are resized to the image with aligned corners (default: half-pixel)",
    )
    answer.add_argument(
        "--threshold",
        type=float,
        help="of a single score, above it a pixel is class 1 (0 of logits, 0.5 of probabilities)",
    )

    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="real images to compare beside random ones (the first 20, 1024 px of each)",
    )
    parser.add_argument(
        "--min-agreement",
        type=share,
        default=0.999,
        metavar="X",
        help="share of labels that must equal the network's own, or nothing is written (0.999)",
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON")


def run(args: argparse.Namespace) -> int:
    import json

    from model.export.adopt import AdoptError, AdoptOptions, chosen
    from training.adopt import adopt_file

    if args.output_kind is not None:
        raise AdoptError("--output-kind is --output-is now: logits, probabilities or labels")

    report = adopt_file(
        args.network,
        args.repository,
        args.name,
        args.classes,
        AdoptOptions(
            preprocessing=chosen(
                args.preprocessing, args.mean, args.std, args.scale, args.color_order
            ),
            size=tuple(args.size) if args.size else None,
            multiple_of_px=args.multiple_of,
            output_is=args.output_is,
            output_layout=args.output_layout,
            threshold=args.threshold,
            align_corners=args.align_corners,
            antialias=args.antialias,
        ),
        version=args.version,
        output=args.output,
        input_layout=args.input_layout,
        logits=args.logits,
        architecture=args.architecture,
        min_agreement=args.min_agreement,
        overwrite=args.overwrite,
        images=args.images,
    )
    print(json.dumps(report.to_dict(), indent=2) if args.json else report.table())
    return 0
