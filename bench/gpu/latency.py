"""Times bare sessions in every precision beside PyTorch, in turns, for each size and batch.

PyTorch runs fp16 in channels last with norms folded, eager and compiled; its last upsampling is its
own bilinear interpolation. On a CPU all of it is fp32, "fp16" being the fp16 file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench import images
from bench.gpu import device, networks
from bench.gpu.networks import Exported, Scale
from bench.networks import make
from bench.turns import Run, take_turns
from model.export.export import for_inference
from model.heads import label_map
from model.network import SegmentationNetwork
from model.upsample import BilinearUpsample


class Served(nn.Module):
    """Labels uint8 [N,H,W,3] RGB in the precision of its weights: uint8 [N,H,W]."""

    def __init__(self, network: SegmentationNetwork, provider: str) -> None:
        super().__init__()
        self.kind = torch.float32 if provider == "cpu" else torch.float16
        for module in network.modules():
            if isinstance(module, BilinearUpsample):
                module.lowering = "interpolate"
        self.network = network.to(provider, self.kind, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> Tensor:
        pixels = image.permute(0, 3, 1, 2).to(self.kind)  # channels last already, in memory
        return label_map(self.network(pixels))


def measure(exported: list[Exported], provider: str, scale: Scale) -> dict[str, Any]:
    """Gives a row for each network, size and batch."""
    torch.backends.cudnn.benchmark = True
    rows = []
    for network in exported:
        sessions = {"fp32": device.open_session(network.fp32, provider)}
        if provider == "cpu":
            sessions["fp16"] = device.open_session(network.fp16, provider)
        else:
            for precision, path in (("tf32", network.fp32), ("fp16", network.fp16)):
                for layout in ("", " NHWC"):
                    sessions[precision + layout] = device.open_session(
                        path, provider, tf32=True, nhwc=bool(layout)
                    )
        eager = Served(
            for_inference(make(networks.spec(network.name, scale.narrow))), provider
        ).eval()
        for size in scale.sizes:
            for batch in scale.batches:
                found = images.batch(batch, size)
                contenders: dict[str, Run] = {
                    name: device.on_device(session, found, provider)
                    for name, session in sessions.items()
                }
                contenders["fp16, from host"] = device.from_host(sessions["fp16"], found)
                more: dict[str, Any] = {}
                if batch in scale.torch_batches:
                    pixels = torch.from_numpy(found).to(provider)
                    compiled, more["compile_s"] = compile_for(eager, pixels, scale, provider)
                    contenders["torch"] = partial(run, eager, pixels)
                    contenders["torch, compiled"] = partial(run, compiled, pixels)
                measured = take_turns(
                    contenders, scale.rounds, images=batch, slot_s=scale.slot_s,
                    synchronize=lambda: device.synchronize(provider),
                )  # fmt: skip
                rows.append(
                    {"network": network.name, "size": list(size), "batch": batch, **more,
                     "contenders": measured}
                )  # fmt: skip
    return {"rows": rows}


@torch.inference_mode()
def run(network: Any, pixels: Tensor) -> Any:
    return network(pixels)


def compile_for(eager: Served, pixels: Tensor, scale: Scale, provider: str) -> tuple[Any, float]:
    """Compiles for one shape, and gives the seconds that it took."""
    torch._dynamo.reset()
    compiled = torch.compile(eager, dynamic=False, backend=scale.compiler)
    begun = time.perf_counter()
    run(compiled, pixels)
    device.synchronize(provider)
    return compiled, round(time.perf_counter() - begun, 1)


def table(parts: dict[str, Any]) -> Iterator[str]:
    """Writes lines of Markdown, if the part was measured."""
    rows = parts.get("latency", {}).get("rows", ())
    if rows:
        yield "| network | size | batch | in | p50 | p99 | images/s |"
        yield "|---|---|---|---|---|---|---|"
    for row in rows:
        for name, got in row["contenders"].items():
            yield (
                f"| {row['network']} | {row['size'][0]}x{row['size'][1]} | {row['batch']} "
                f"| {name} | {got['p50_ms']:.2f} ms | {got['p99_ms']:.2f} ms "
                f"| {got['images_per_s']:.0f} |"
            )
