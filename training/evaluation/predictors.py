"""Interfaces of what gives a label map for an image, and a torch network as one."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from model.heads import label_maps
from model.network import SegmentationNetwork
from training.datasets.base import UInt8Array


class Predictor(Protocol):
    """Maps RGB uint8 [H,W,3] to uint8 [H,W] class ids, at the image's own size. `Sample` says what
    a network of other channels or several heads takes and gives."""

    def __call__(self, image: UInt8Array, /) -> UInt8Array: ...


class FilePredictor(Protocol):
    """Maps an image file to uint8 [H,W] class ids, at the upright image's size; thread-safe.

    Raises: ImageFailed, ServerLost.
    """

    def __call__(self, path: Path, /) -> UInt8Array: ...


class NetworkPredictor:
    """Runs a torch network on one whole image at a time, no flip, no scales (the paper's protocol).

    Takes the channels of its modality, and gives [H,W,K] if it has K > 1 heads.
    """

    def __init__(self, network: SegmentationNetwork, bf16: bool = False) -> None:
        self.network = network.eval()
        self.bf16 = bf16

    @torch.inference_mode()
    def __call__(self, image: UInt8Array, /) -> UInt8Array:
        images = torch.tensor(image).permute(2, 0, 1)[None].float()
        device = next(self.network.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.network(images.to(device))
        return label_maps(logits, self.network.heads)[0].cpu().numpy()
