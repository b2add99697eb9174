"""Advice on errors of torch that a field of the config can avoid."""

from __future__ import annotations

import torch

from training.config import TrainConfig


def advice(error: Exception, config: TrainConfig) -> str | None:
    """Give one sentence with the field to change; None for an error that no field avoids."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in text:
        augment, batch_size = config.augment, config.schedule.batch_size
        if augment.crop_height is None:
            return (
                f"out of memory with {batch_size} whole images: lower schedule.batch_size, or set "
                "augment.crop_height and augment.crop_width"
            )
        return (
            f"out of memory with {batch_size} crops of {augment.crop_height}x{augment.crop_width}: "
            "lower schedule.batch_size, augment.crop_height or augment.crop_width"
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"torch.compile fails here ({text.splitlines()[0]}): set compile=false"
    if "DataLoader worker" in text:
        return (
            f"a process that reads images died ({text.splitlines()[0]}): lower data.workers, or "
            "give the container more shared memory"
        )
    if "Expected more than 1 value per channel" in text:
        return (
            "one crop is too small for batch norm, its map at stride 32 has one cell: raise "
            "schedule.batch_size or the crop above 32 pixels"
        )
    return None
