"""Times the networks, one image at a time: ONNX Runtime beside PyTorch, or as the paper did.

    python -m bench.networks [--rounds 20] [--networks mobilenet_v1 vgg16] [--int8]
    python -m bench.networks --protocol paper

Without a protocol, each network takes one uint8 image and gives one uint8 label map, so that
normalisation, upsampling and arg max are paid for; the exported file in ONNX Runtime (with --int8
also in 8 bits) and PyTorch eager take turns. The paper's protocol is its table 1: mean forward time
to the class scores at 500x500, loading and arg max left out, on CUDA if torch sees it. Its times
are of a Tesla K40c under Caffe: their order is worth comparing, not their size.

Weights are random: the time does not depend on them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch

from bench import images, record
from bench.turns import Run, take_turns
from model.build import BACKBONES, NetworkSpec, build
from model.contract import ClassInfo, Contract, TrainingData
from model.export.export import ServedNetwork, export
from model.export.fp32_model import load_fp32
from model.export.quantize import Quantizer
from model.network import SegmentationNetwork

SIZES = ((360, 480), (375, 500))
CLASSES = 21
"""PASCAL VOC has as many classes, and so have the paper's networks."""
PAPER_SIZE = (500, 500)
PAPER_MS = {"alexnet": 50, "vgg16": 210, "googlenet": 59}
"""Times on a Tesla K40c. Source: arXiv 1411.4038, table 1."""
_CALIBRATION_IMAGES = 8
_PAUSE_S = 0.1


def main(words: Sequence[str] | None = None) -> int:
    args = parse(words)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.protocol == "paper":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        rows = [paper_row(spec, args, device) for spec in args.specs]
        kind = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    else:
        rows = [row for spec in args.specs for row in served_rows(spec, args)]
        kind = "cpu"
    for line in table(rows):
        print(line)
    head = {"device": kind, "threads": torch.get_num_threads(), "classes": CLASSES}
    record.write(args.out, {**head, "rounds": args.rounds, "rows": rows})
    return 0


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = record.parser("bench.networks", __doc__)
    parser.add_argument("--protocol", choices=("served", "paper"), default="served")
    parser.add_argument("--networks", nargs="+", metavar="BACKBONE[-PADDING]",
                        help="(mobilenet_v1 and vgg16; of the paper's protocol all, "
                        "the paper's own padded as there)")  # fmt: skip
    parser.add_argument("--variant", choices=("32s", "16s", "8s", "4s"),
                        help="(8s; of the paper's protocol 32s)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2, help="of the CPU; 0: torch's choice")
    parser.add_argument("--size", type=int, nargs=2, action="append", metavar=("H", "W"),
                        help=f"({SIZES}; of the paper's protocol {PAPER_SIZE})")  # fmt: skip
    parser.add_argument("--int8", action="store_true", help="the file in 8 bits takes turns, too")
    parser.add_argument("--out", type=Path, help="by default results/networks-PROTOCOL.json")
    args = parser.parse_args(words)
    if args.rounds < 1 or min((side for size in args.size or () for side in size), default=1) < 1:
        parser.error("want at least one round, of at least one pixel")
    paper = args.protocol == "paper"
    args.size = [tuple(size) for size in args.size or ((PAPER_SIZE,) if paper else SIZES)]
    args.variant = args.variant or ("32s" if paper else "8s")
    args.out = args.out or record.RESULTS / f"networks-{args.protocol}.json"
    names = args.networks or (papers_networks() if paper else ["mobilenet_v1", "vgg16"])
    try:
        args.specs = [spec_of(name, args.variant) for name in names]
    except ValueError as error:
        parser.error(str(error))
    return args


def papers_networks() -> list[str]:
    return [f"{name}-pad100" if name in PAPER_MS else name for name in BACKBONES]


def spec_of(network: str, variant: str) -> NetworkSpec:
    """Reads `vgg16` or `vgg16-pad100`. Raises: ValueError if there is no such network."""
    backbone, _, padding = network.partition("-")
    if backbone not in BACKBONES:
        raise ValueError(f"no backbone {backbone!r}: want one of {', '.join(BACKBONES)}")
    if padding not in ("", "same", "pad100"):
        raise ValueError(f"no padding {padding!r}: want same or pad100")
    skips = 64 if backbone == "mobilenet_v1" and variant != "32s" else 0
    return NetworkSpec(
        backbone,
        variant,  # type: ignore[arg-type]
        padding=padding or "same",  # type: ignore[arg-type]
        skip_channels=skips,
    )


def make(spec: NetworkSpec) -> SegmentationNetwork:
    """Builds it with random weights, those of the score layers too, which would start at zero."""
    torch.manual_seed(0)
    network = build(spec, CLASSES)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    return network.eval()


def contract(name: str) -> Contract:
    return Contract(
        model_name=name,
        architecture=name,
        classes=tuple(ClassInfo(i, f"class{i}", (i, 255 - i, i)) for i in range(CLASSES)),
        training_data=TrainingData("none: random weights", "none"),
    )


def served_rows(spec: NetworkSpec, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures a row for each size."""
    network = make(spec)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(network, contract("bench"), path)
        sessions = {"onnxruntime": open_session(path, args.threads)}
        if args.int8:
            sessions["int8"] = open_session(write_int8(path, args.size[0]), args.threads)
    eager = ServedNetwork(network, logits=False).eval()
    rows = []
    for height, width in args.size:
        image = images.batch(1, (height, width))
        contenders: dict[str, Run] = {
            name: partial(session.run, ["label_map"], {"image": image})
            for name, session in sessions.items()
        }
        contenders["pytorch"] = partial(run_eager, eager, image)
        # The threads of whoever ran before go on spinning for a while: hence the pause.
        times = take_turns(contenders, args.rounds, pause_s=_PAUSE_S)
        rows.append(
            {
                "network": spec.architecture,
                "height": height,
                "width": width,
                **times,
                "of_onnxruntime": {
                    name: round(each["p50_ms"] / times["onnxruntime"]["p50_ms"], 3)
                    for name, each in times.items()
                },
            }
        )
    return rows


def write_int8(path: Path, size: images.Size) -> Path:
    """Puts every layer in 8 bits, calibrated on drawn scenes, into a file beside the first."""
    model = load_fp32(path)
    scenes = (images.scene(size, seed) for seed in range(_CALIBRATION_IMAGES))
    target = path.with_name("model.int8.onnx")
    onnx.save_model(Quantizer(model, scenes).quantize(list(model.layers)), str(target))
    return target


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """Opens the file with the server's options (service/core/engines/onnx_runtime.py)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@torch.inference_mode()
def run_eager(network: ServedNetwork, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    labels = network(torch.from_numpy(image))
    return np.asarray(labels)


@torch.inference_mode()
def paper_row(spec: NetworkSpec, args: argparse.Namespace, device: str) -> dict[str, Any]:
    """Measures one network as table 1 of the paper does."""
    height, width = args.size[0]
    network = make(spec).to(device)
    pixels = torch.rand(1, 3, height, width, device=device) * 255
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = take_turns({"forward": partial(network, pixels)}, args.rounds, synchronize=synchronize)
    return {
        "network": spec.architecture,
        "height": height,
        "width": width,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        **times,
        "paper_ms": PAPER_MS.get(spec.backbone) if spec.variant == "32s" else None,
    }


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Writes lines of Markdown, of either protocol."""
    yield "| network | size | in | mean | p50 | of ONNX Runtime's | paper, K40c |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        for name in ("onnxruntime", "int8", "pytorch", "forward"):
            if (time := row.get(name)) is not None:
                yield (
                    f"| {row['network']} | {row['height']}x{row['width']} | {name} "
                    f"| {time['mean_ms']:.1f} ms | {time['p50_ms']:.1f} ms "
                    f"| {row.get('of_onnxruntime', {}).get(name, '-')} "
                    f"| {row.get('paper_ms') or '-'} |"
                )


if __name__ == "__main__":
    sys.exit(main())
