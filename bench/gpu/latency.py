"""Times bare sessions in every precision beside PyTorch, in turns, for each size and batch.

PyTorch runs the served network under autocast to fp16 in channels last, eager and compiled. On a
CPU all of it is fp32, "fp16" being the fp16 file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench import images
from bench.gpu import device, networks
from bench.gpu.networks import Exported, Scale
from bench.networks import make
from bench.turns import Run, take_turns
from model.export.export import ServedNetwork


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
        served = ServedNetwork(make(networks.spec(network.name, scale.narrow)), logits=False)
        eager = served.eval().to(provider, memory_format=torch.channels_last)  # type: ignore[call-overload]
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
    with torch.autocast(pixels.device.type, torch.float16, enabled=pixels.is_cuda):
        return network(pixels)


def compile_for(
    eager: ServedNetwork, pixels: Tensor, scale: Scale, provider: str
) -> tuple[Any, float]:
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
