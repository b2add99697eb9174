"""MobileNetV1 narrow enough to train in a test."""

from __future__ import annotations

import pytest
import torch

from model.backbones import mobilenet_v1


def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of the channels, while the patch lasts: the same layers in a fraction of the
    time. Torch is left on one thread."""
    narrowed = tuple(channels // 8 for channels in mobilenet_v1._CHANNELS)
    monkeypatch.setattr(mobilenet_v1, "_CHANNELS", narrowed)
    monkeypatch.setattr(mobilenet_v1.MobileNetV1, "pool3_channels", narrowed[4])
    monkeypatch.setattr(mobilenet_v1.MobileNetV1, "pool4_channels", narrowed[10])
    torch.set_num_threads(1)
