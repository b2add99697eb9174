"""From a trained network to one ONNX file that takes uint8 pixels and gives uint8 labels.

Preprocessing, upsampling to input pixels, arg max and the casts are inside the graph; batch,
height and width are dynamic; the weights are inside the file. The file is run in ONNX Runtime
against PyTorch before it is renamed into place, so a wrong export never reaches a server.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from model.backbones.norms import fold_norms
from model.contract import Contract
from model.export.onnx_file import save, written_beside
from model.export.parity import ExportError, ParityReport, check_parity
from model.export.tidy import merge_slices, tidy
from model.export.winograd import use_winograd
from model.network import SegmentationNetwork
from model.upsample import BilinearUpsample, Lowering

OPSET = 18
"""The opset of torch's exporter; a later opset would be a conversion with nothing gained."""

SPEC_KEY = "fcn_network"
"""The file's metadata has the network's `NetworkSpec` under it, as JSON, beside the contract."""


class ServedNetwork(nn.Module):
    """Turns uint8 RGB [N,H,W,3] into class ids, uint8 [N,H,W], and `logits`, float [N,C,H,W]."""

    def __init__(self, network: SegmentationNetwork, logits: bool) -> None:
        super().__init__()
        self.network, self.logits = network, logits

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        images = image.permute(0, 3, 1, 2).float()
        height, width = images.shape[2:]
        labels, logits = self.network.to_labels(self.network.scores(images), (height, width))
        return (labels, logits) if self.logits else labels


def export(
    network: SegmentationNetwork,
    contract: Contract,
    path: Path,
    lowering: Lowering = "phases",
    *,
    winograd: Sequence[str] = (),
) -> tuple[Contract, ParityReport]:
    """Write `path`; an existing file is replaced only after the new one has passed.

    `lowering`: how the fixed upsamplings are computed. `winograd`: layers computed with fewer
    multiplications, see `model.export.winograd`. The contract decides whether the graph has a
    `logits` output. Returns the contract that the file holds, which says how far a label looks.
    Raises: ExportError, WinogradError.
    """
    if network.num_classes != len(contract.classes):
        raise ExportError(
            f"the network has {network.num_classes} classes, its contract {len(contract.classes)}"
        )
    contract = with_halo(network, contract)
    served = for_inference(network, lowering)
    use_winograd(served, winograd)
    proto = _to_onnx(served, contract)
    more = {SPEC_KEY: json.dumps(dataclasses.asdict(network.spec))} if network.spec else {}
    with written_beside(path) as temporary:
        save(proto, contract, temporary, more)
        report = check_parity(network, contract, temporary)
    return contract, report


def with_halo(network: SegmentationNetwork, contract: Contract) -> Contract:
    """Adds the network's `context_px` to the contract, in whole strides."""
    stride, halo = contract.input.stride, network.halo_px
    px = None if halo is None else -(-halo // stride) * stride
    return dataclasses.replace(contract, input=dataclasses.replace(contract.input, context_px=px))


def for_inference(
    network: SegmentationNetwork, lowering: Lowering = "phases"
) -> SegmentationNetwork:
    """Copies the network to the CPU with norms folded, padding that is alike computed once, and
    the fixed upsamplings computed by `lowering`."""
    served = copy.deepcopy(network).cpu().float().eval()
    fold_norms(served)
    served.backbone.fold_constant_padding()
    for module in served.modules():
        if isinstance(module, BilinearUpsample):
            module.lowering = lowering
    return served


def _to_onnx(network: SegmentationNetwork, contract: Contract) -> onnx.ModelProto:
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
    proto = merge_slices(proto)
    tidy(proto, contract)
    onnx.checker.check_model(proto, full_check=True)
    return proto
