"""From a trained network to one ONNX file that takes uint8 pixels and gives uint8 labels.

Normalisation, upsampling to input pixels, arg max and the casts are inside the graph; batch,
height and width are dynamic; the weights are inside the file. The file is run in ONNX Runtime
against PyTorch before it is renamed into place, so a wrong export never fields a server.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model.backbones.mobilenet_v1 import ConvNorm
from model.backbones.vgg16 import VGG16
from model.contract import Contract
from model.export.adopt.receptive_field import UnboundedField, halo_of
from model.export.border import trim_border
from model.export.onnx_file import save, written_beside
from model.export.parity import ExportError, ParityReport, check_parity
from model.export.tidy import merge_slices, tidy
from model.export.winograd import use_winograd
from model.fcn import FCN, label_map
from model.upsample import BilinearUpsample, Lowering

OPSET = 18
"""What torch's exporter builds at; a later opset would be a conversion with nothing gained."""


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
    winograd: Sequence[str] = (),
) -> tuple[Contract, ParityReport]:
    """Write `path`; an existing file is replaced only after the new one has passed.

    `lowering`: how the fixed upsamplings are computed. `trim`: of what a wide padding makes alike,
    only one row and column is computed; see `model.export.border`. `winograd`: layers computed
    with fewer multiplications, see `model.export.winograd`. The contract decides whether the graph
    has a `logits` output. Returns the contract that the file holds, which says how far a label
    looks. Raises: ExportError, WinogradError.
    """
    if network.num_classes != len(contract.classes):
        raise ExportError(
            f"the network has {network.num_classes} classes, its contract {len(contract.classes)}"
        )
    folded = fold_norms(network)
    for module in folded.modules():
        if isinstance(module, BilinearUpsample):
            module.lowering = lowering
    use_winograd(folded, winograd)
    proto = _to_onnx(folded, contract)
    contract = with_halo(proto, contract)
    if trim:  # after the context, which is read off plain layers
        trim_border(proto.graph)
    with written_beside(path) as temporary:
        save(proto, contract, temporary)
        report = check_parity(network, contract, temporary)
    return contract, report


def with_halo(proto: onnx.ModelProto, contract: Contract) -> Contract:
    """The contract with the network's `context_px`, or with None where no part can do."""
    stride = contract.input.stride
    try:
        halo = halo_of(proto, contract)
    except UnboundedField:
        px = None
    else:
        px = None if stride % halo.stride else -(-halo.halo_px // stride) * stride
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
        # torch.onnx.export would try without `strict` first, which takes the batch for a constant.
        traced = torch.export.export(served, (example,), dynamic_shapes=(axes,), strict=True)
        program = torch.onnx.export(
            traced,
            input_names=[contract.input.name],
            output_names=names,
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
