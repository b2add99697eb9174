"""From a trained network to one ONNX file that takes uint8 pixels and gives uint8 labels.

Normalisation, upsampling to input pixels, arg max and the casts are inside the graph; batch,
height and width are dynamic; the weights are inside the file. The file is run in ONNX Runtime
against PyTorch before it is renamed into place, so a wrong export never reaches a server.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model.backbones.mobilenet_v1 import ConvNorm
from model.backbones.vgg16 import VGG16
from model.border import trim_border
from model.context import NotLocal, context_of
from model.contract import METADATA_KEY, Contract
from model.fcn import FCN, label_map
from model.graph import merge_slices, tidy
from model.upsample import BilinearUpsample, Lowering

OPSET = 18
"""What torch's exporter builds at; a later opset would be a conversion with nothing gained."""

PARITY_SIZES = ((1, 32, 32), (1, 97, 61), (2, 64, 129), (3, 45, 100), (1, 1, 1))
"""(N,H,W): square, odd, non-square, batched, and one pixel."""

LOGIT_TOLERANCE = 1e-3
"""Largest difference relative to the largest logit. Rounding differs with the order of sums;
1e-5 is known to be too tight (open-mmlab/mmsegmentation#136)."""

LABEL_AGREEMENT = 0.999
"""Share of equal labels. Ties within the rounding above may fall either way."""


class ExportError(ValueError):
    """The file was not written: it does not do what the network does, or cannot be made."""


@dataclass(frozen=True, slots=True)
class ParityReport:
    """ONNX Runtime against PyTorch on random pictures of `sizes`."""

    sizes: tuple[tuple[int, int, int], ...]
    largest_logit_difference: float | None
    """relative to the largest logit; None if the file gives labels only"""
    label_agreement: float
    """the worst size's share of equal labels"""


class ServedNetwork(nn.Module):
    """uint8 [N,H,W,3] RGB -> uint8 [N,H,W] class ids, and with `logits` also float [N,C,H,W]."""

    def __init__(self, network: FCN, logits: bool) -> None:
        super().__init__()
        self.network, self.logits = network, logits

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        images = image.permute(0, 3, 1, 2).float()
        if self.network.upscore.lowering == "phases":
            return self._by_phases(images)
        logits = self.network(images)
        labels = label_map(logits)
        return (labels, logits) if self.logits else labels

    def _by_phases(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Arg max before the pixels are put in order, on labels rather than on C scores."""
        upscore = self.network.upscore
        phases = upscore.phases(self.network.scores(images))
        labels = self._ordered(label_map(phases), images)[:, 0]
        if not self.logits:
            return labels
        return labels, self._ordered(phases.flatten(1, 2), images)

    def _ordered(self, phases: Tensor, images: Tensor) -> Tensor:
        """[N,C*f*f,h,w] -> [N,C,H,W], cut to the images."""
        top = self.network.crop
        height, width = images.shape[2:]
        full = functional.pixel_shuffle(phases, self.network.upscore.factor)
        return full[:, :, top : top + height, top : top + width]


def export(
    network: FCN,
    contract: Contract,
    path: Path,
    lowering: Lowering = "phases",
    *,
    trim: bool = True,
) -> ParityReport:
    """Write `path`; an existing file is replaced only after the new one has passed.

    `lowering`: how the fixed upsamplings are computed. `trim`: of what a wide padding makes alike,
    only one row and column is computed; see `model.border`. The contract decides whether the graph
    has a `logits` output. Raises: ExportError.
    """
    if network.num_classes != len(contract.classes):
        raise ExportError(
            f"the network has {network.num_classes} classes, its contract {len(contract.classes)}"
        )
    folded = fold_norms(network)
    for module in folded.modules():
        if isinstance(module, BilinearUpsample):
            module.lowering = lowering
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        proto = _to_onnx(folded, contract)
        contract = with_context(proto, contract)
        if trim:  # after the context, which is read off plain layers
            trim_border(proto.graph)
        onnx.helper.set_model_props(proto, {METADATA_KEY: contract.to_json()})
        onnx.save_model(proto, str(temporary))
        report = check_parity(network, contract, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return report


def with_context(proto: onnx.ModelProto, contract: Contract) -> Contract:
    """The contract with the graph's `context_px`, or with None where no part can do."""
    stride = contract.input.stride
    try:
        context = context_of(proto, contract)
    except NotLocal:
        px = None
    else:
        px = None if stride % context.stride else -(-context.px // stride) * stride
    return dataclasses.replace(contract, input=dataclasses.replace(contract.input, context_px=px))


def fold_norms(network: FCN) -> FCN:
    """A copy in eval mode whose batch norms are folded into the convolutions before them."""
    folded = copy.deepcopy(network).cpu().float().eval()
    for module in list(folded.modules()):
        if isinstance(module, VGG16) and module.batch_norm:
            module.fold_norms()
        elif isinstance(module, ConvNorm) and isinstance(module.norm, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.norm = nn.Identity()  # type: ignore[assignment]
        elif isinstance(module, nn.Sequential):
            layers = list(module)
            for index, (first, second) in enumerate(pairwise(layers)):
                if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                    module[index] = fuse_conv_bn_eval(first, second)
                    module[index + 1] = nn.Identity()
    return folded


def _to_onnx(network: FCN, contract: Contract) -> onnx.ModelProto:
    names = [contract.outputs.label_map]
    if contract.outputs.logits:
        names.append(contract.outputs.logits)
    served = ServedNetwork(network, contract.outputs.logits is not None).eval()
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros(2, 70, 101, 3, dtype=torch.uint8)
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations, not ours to act on
        for chatty in ("onnxscript", "torch.onnx"):
            logging.getLogger(chatty).setLevel(logging.ERROR)
        program = torch.onnx.export(
            served,
            (example,),
            input_names=[contract.input.name],
            output_names=names,
            dynamic_shapes=({**axes},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise ExportError("torch.onnx.export gave nothing")
    proto: onnx.ModelProto = program.model_proto
    tidy(proto, contract)
    merge_slices(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


@torch.inference_mode()
def check_parity(
    network: FCN,
    contract: Contract,
    path: Path,
    sizes: Sequence[tuple[int, int, int]] = PARITY_SIZES,
) -> ParityReport:
    """Run the file in ONNX Runtime (CPU) and the network in PyTorch on the same pictures.

    Sides are raised to the contract's `min_side_px`. A file without a `logits` output is compared
    by its labels alone. Raises: ExportError if they differ by more than LOGIT_TOLERANCE or agree
    on fewer labels than LABEL_AGREEMENT.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    reference = copy.deepcopy(network).cpu().float().eval()
    random = np.random.default_rng(0)
    names = [contract.outputs.label_map]
    if contract.outputs.logits:
        names.append(contract.outputs.logits)
    smallest = contract.input.min_side_px
    checked = tuple((n, max(h, smallest), max(w, smallest)) for n, h, w in sizes)
    difference, agreement = 0.0, 1.0
    for size in checked:
        images = _picture(size, random)
        wanted = reference(torch.from_numpy(images).permute(0, 3, 1, 2).float())
        got = session.run(names, contract.feeds(images))
        if got[0].shape != size or got[0].dtype != np.uint8:
            raise ExportError(
                f"for uint8 {images.shape} the file gives {got[0].dtype} {got[0].shape}"
            )
        if contract.outputs.logits:
            scale = max(float(wanted.abs().max()), 1e-6)
            difference = max(difference, float(np.abs(got[1] - wanted.numpy()).max()) / scale)
        agreement = min(agreement, float((got[0] == label_map(wanted).numpy()).mean()))
    if not difference <= LOGIT_TOLERANCE or agreement < LABEL_AGREEMENT:
        raise ExportError(
            f"ONNX Runtime and PyTorch disagree: logits by {difference:.2e} (relative), labels "
            f"on {1 - agreement:.2%} of the pixels; nothing was written"
        )
    return ParityReport(checked, difference if contract.outputs.logits else None, agreement)


def _picture(size: tuple[int, int, int], random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """uint8 [N,H,W,3]: smooth shapes rather than noise, so that features are not all alike."""
    count, height, width = size
    coarse = random.integers(0, 256, (count, height // 8 + 2, width // 8 + 2, 3), np.uint8)
    large = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    grain = random.integers(0, 32, large.shape, np.uint8)
    return np.ascontiguousarray(large // 8 * 7 + grain)
