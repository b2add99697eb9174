"""PyTorch beside ONNX Runtime in turns: eager and torch.compile, fp16, channels last.

Uint8 pixels in and uint8 labels out, all on the device, as the exported file has it; the last
upsampling is torch's own bilinear interpolation, norms are folded. On a CPU it is fp32.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from bench.gpu import networks, sessions
from bench.gpu.device import synchronize
from bench.gpu.latency import Scale, batch_of, named, open_all
from bench.gpu.networks import Exported
from bench.gpu.report import Budget, Result
from bench.gpu.turns import take_turns
from model.export.export import for_inference
from model.fcn import label_map
from model.network import SegmentationNetwork
from model.upsample import BilinearUpsample

PART = "torch"


class Served(nn.Module):
    """uint8 [N,H,W,3] RGB -> uint8 [N,H,W] class ids, in the precision of its weights."""

    def __init__(self, network: SegmentationNetwork, device: str) -> None:
        super().__init__()
        self.kind = torch.float32 if device == "cpu" else torch.float16
        for module in network.modules():
            if isinstance(module, BilinearUpsample):
                module.lowering = "interpolate"
        self.network = network.to(device, self.kind, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> Tensor:
        images = image.permute(0, 3, 1, 2).to(self.kind)  # channels last already, in memory
        return label_map(self.network(images))


def measure(
    exported: list[Exported],
    provider: str,
    scale: Scale,
    result: Result,
    budget: Budget,
    *,
    mode: str,
    backend: str,
) -> None:
    """Rows of `PART`, of the first size only. `mode`, `backend`: of torch.compile."""
    torch.backends.cudnn.benchmark = True
    size, missing = scale.sizes[0], []
    for index, network in enumerate(exported):
        own = budget.share(len(exported) - index)
        keys: list[dict[str, Any]] = [
            {"network": network.name, "size": list(size), "batch": batch}
            for batch in scale.torch_batches
        ]
        keys = [key for key in keys if not result.has(PART, key)]
        if not keys or not own.left_s:
            missing += [named(key) for key in keys]
            continue
        opened, _ = open_all(network, provider, scale)
        eager = Served(for_inference(networks.make(network.name, scale.narrow)), provider).eval()
        for key in keys:
            if not own.left_s:
                missing.append(named(key))
                continue
            images = batch_of(key["batch"], size)
            row = _row(opened["fp16"], eager, images, provider, scale, mode, backend)
            result.add(PART, {**key, **row})
    result.set(PART, not_reached=missing)


def _row(
    session: Any, eager: Served, images: Any, provider: str, scale: Scale, mode: str, backend: str
) -> dict[str, Any]:
    on_device = torch.from_numpy(images).to(provider)
    torch._dynamo.reset()
    options: dict[str, Any] = {"mode": mode} if backend == "inductor" else {}
    compiled = torch.compile(eager, dynamic=False, backend=backend, **options)
    with torch.inference_mode():
        begun = time.perf_counter()
        compiled(on_device)
        synchronize(provider)
        compile_s = time.perf_counter() - begun
        contenders = {
            "onnxruntime": sessions.on_device(session, images, provider),
            "eager": lambda: eager(on_device),
            "compile": lambda: compiled(on_device),
        }
        measured = take_turns(
            contenders, len(images), scale.slot_s, scale.rounds, lambda: synchronize(provider)
        )
    ratio = measured["onnxruntime"]["images_per_s"] / measured["compile"]["images_per_s"]
    return {
        "precision": "fp32" if provider == "cpu" else "fp16",
        "compile_s": round(compile_s, 2),
        "compile_backend": backend,
        "compile_mode": mode,
        "onnxruntime_over_compile": round(ratio, 3),
        "contenders": measured,
    }
