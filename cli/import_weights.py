"""`fcn import-weights`"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "turn weights of PyTorch, Keras or Caffe into start weights or a checkpoint"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        type=Path,
        help=".pth, .pt or .safetensors (torchvision names), .npz (plain or Keras), or .caffemodel",
    )
    parser.add_argument(
        "--network",
        required=True,
        metavar="NAME",
        help="vgg16, alexnet (CaffeNet), googlenet, mobilenet_v1 or efficientnet_lite0",
    )
    parser.add_argument(
        "--head",
        choices=("none", "32s", "16s", "8s"),
        default="none",
        help="none: backbone weights for init.imagenet (default); else the FCN that FILE holds, as "
        "a checkpoint for fcn evaluate and fcn export",
    )
    parser.add_argument(
        "--padding",
        choices=("same", "pad100"),
        default="pad100",
        help="of an FCN: as the authors trained it (default: pad100)",
    )
    parser.add_argument(
        "--preprocessing",
        "--normalisation",
        choices=("caffe", "torchvision", "nyudv2", "siftflow", "tensorflow", "lite"),
        help="what the weights were fed with (default: by the kind of file, or of the released "
        "net; an .npz of plain layers does not say)",
    )
    parser.add_argument(
        "--width",
        type=float,
        default=1.0,
        metavar="X",
        help="channels of FILE's network as a factor of the usual ones (default: 1)",
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="class list of an FCN (default: by their number, the authors' nets': VOC's 21, "
        "NYUDv2's 40, PASCAL-Context's 60, SIFT Flow's 33 and 3)",
    )
    parser.add_argument(
        "--modality",
        choices=("rgb", "hha"),
        help="hha: the file holds an FCN for HHA, which has the layers of one for colour",
    )
    parser.add_argument("--name", help="of an FCN, for fcn export")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    parser.add_argument("--json", action="store_true", help="the report as JSON")


def run(args: argparse.Namespace) -> int:
    import json

    from training.datasets.folder import load_info
    from training.import_weights import import_checkpoint, import_start_weights

    if args.head == "none":
        imported = import_start_weights(
            args.file,
            args.output,
            network=args.network,
            preprocessing=args.preprocessing,
            width=args.width,
        )
    else:
        imported = import_checkpoint(
            args.file,
            args.output,
            network=args.network,
            variant=args.head,
            padding=args.padding,
            preprocessing=args.preprocessing,
            width=args.width,
            dataset=load_info(args.classes) if args.classes else None,
            modality=args.modality,
            name=args.name,
        )
    if args.json:
        print(json.dumps({"output": str(args.output), **imported.to_dict()}, indent=2))
        return 0
    print(imported.report.table())
    print(f"sha256 {imported.sha256}")
    print(f"{args.output}: weights for {imported.preprocessing} preprocessing")
    return 0
