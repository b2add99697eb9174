"""Interfaces of what gives a label map for an image, and a torch network as one."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from model.heads import label_maps, split
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

    `flip`: not the paper's, the probabilities of the image and of its mirror image are averaged.
    Takes the channels of its modality, and gives [H,W,K] if it has K > 1 heads.
    """

    def __init__(
        self, network: SegmentationNetwork, bf16: bool = False, flip: bool = False
    ) -> None:
        self.network = network.eval()
        self.bf16, self.flip = bf16, flip

    @torch.inference_mode()
    def __call__(self, image: UInt8Array, /) -> UInt8Array:
        images = torch.tensor(image).permute(2, 0, 1)[None].float()
        device = next(self.network.parameters()).device
        images = images.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.network(images)
            if self.flip:
                mirrored = self.network(images.flip(3)).flip(3)
                logits = torch.cat([
                    own.softmax(dim=1) + other.softmax(dim=1)
                    for own, other in zip(
                        split(logits, self.network.heads).values(),
                        split(mirrored, self.network.heads).values(),
                        strict=True,
                    )
                ], dim=1)  # fmt: skip
        return label_maps(logits, self.network.heads)[0].cpu().numpy()
