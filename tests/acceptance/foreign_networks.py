"""Networks of other libraries with random weights, as ONNX files for `fcn adopt`.

    pip install --no-deps --target SITE segmentation-models-pytorch==0.6.0 timm==1.0.31 \\
        torchvision==0.28.0 transformers==5.23.0 huggingface-hub==2.4.0 tokenizers==0.23.3 \\
        safetensors regex requests tqdm httpx2 httpcore2 truststore
    PYTHONPATH=.:SITE python -m tests.acceptance.foreign_networks FOLDER

writes deeplab.onnx, unet.onnx, segformer.onnx and segformer-fixed.onnx. Not run by the test suite:
the libraries take 200 MB and their imports alone 16 s. `tests/foreign_graphs.py` has graphs of the
same structure for that.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 7
ANY_SIZE = {0: "batch", 2: "height", 3: "width"}


def _library(name: str) -> Any:
    # torchvision from PyPI has the operators of its CUDA build, which a CPU build of torch cannot
    # load; the segmentation networks use none of them.
    for part in ("_meta_registrations", "_autograd_registrations"):
        sys.modules.setdefault(f"torchvision.{part}", types.ModuleType(part))
    return importlib.import_module(name)


def spread(network: nn.Module) -> nn.Module:
    """Scores that differ from place to place: as drawn, random weights give one class all over."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    network.train()
    with torch.no_grad():
        for _ in range(2):
            network(_image())
    return network.eval()


def _image() -> Tensor:
    """Float [2,3,128,128] of smooth patches in the range of normalised pixels."""
    coarse = torch.rand(2, 3, 16, 16) * 4 - 2
    return nn.functional.interpolate(coarse, scale_factor=8.0, mode="nearest")


class Logits(nn.Module):
    """The logits alone of a network that answers with a mapping."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=pixels).logits
        return logits


def deeplab() -> nn.Module:
    """DeepLabV3+ on ResNet-18: ASPP with global pooling; logits at full size, align_corners."""
    smp = _library("segmentation_models_pytorch")
    network: nn.Module = smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=CLASSES)
    return spread(network)


def unet() -> nn.Module:
    """U-Net on ResNet-18: logits at full size."""
    smp = _library("segmentation_models_pytorch")
    return spread(smp.Unet("resnet18", encoder_weights=None, classes=CLASSES))


def segformer() -> nn.Module:
    """SegFormer-B0: logits at a quarter of the size."""
    transformers = _library("transformers")
    config = transformers.SegformerConfig(num_labels=CLASSES)
    return spread(Logits(transformers.SegformerForSemanticSegmentation(config)))


def write(network: nn.Module, path: Path, size: tuple[int, int], *, fixed: bool = False) -> None:
    """Exports by torch; `fixed`: for one image of `size` (height, width) only."""
    example = torch.zeros(1 if fixed else 2, 3, *size)
    axes = {} if fixed else dict.fromkeys(ANY_SIZE, torch.export.Dim.DYNAMIC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            str(path),
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes=(axes,),
            opset_version=18,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def main(folder: Path, wanted: list[str]) -> None:
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name, make, size, fixed in (
        ("deeplab", deeplab, (128, 160), False),
        ("unet", unet, (128, 160), False),
        ("segformer", segformer, (128, 160), False),
        ("segformer-fixed", segformer, (192, 256), True),
    ):
        if wanted and name not in wanted:
            continue
        path = folder / f"{name}.onnx"
        write(make(), path, size, fixed=fixed)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
