"""MobileNetV1 and AlexNet narrow enough to train in a test."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from model import build
from model.backbones import mobilenet_v1
from model.backbones.alexnet import AlexNet


def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of the channels, while the patch lasts: the same layers in a fraction of the
    time. Torch is left on one thread."""
    narrowed = tuple(channels // 8 for channels in mobilenet_v1._CHANNELS)
    monkeypatch.setattr(mobilenet_v1, "_CHANNELS", narrowed)
    torch.set_num_threads(1)


def narrow_alexnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of the channels, as above: a net without norms."""
    monkeypatch.setattr(build, "AlexNet", partial(AlexNet, channels=(12, 32, 48, 48, 32)))
    torch.set_num_threads(1)
