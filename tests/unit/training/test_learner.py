"""A step asks a device for one number at its end, and for nothing before that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.build import build
from tests.unit.training.recipes import MakeConfig
from training.learner import Learner

WAITS = {"_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique", "is_nonzero"}
"""Operators of torch that end only when the device has computed their operands."""


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each operator for which the CPU would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in WAITS or masks:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "loss",
    [
        {},
        {"dice": 0.5, "class_weight_offset": 1.1},
        {"sample": 0.5, "sample_cell_px": 16},
        {"reduction": "sum"},
    ],
    ids=str,
)
@pytest.mark.parametrize("taught", [False, True])
def test_a_step_waits_once(make_config: MakeConfig, loss: dict[str, Any], taught: bool) -> None:
    # torch's AdamW reads its step counter, which lies on the CPU anyway.
    config = make_config(loss=loss, optimizer={"kind": "sgd", "head_lr": 1e-6})
    weights = torch.ones(4) if "class_weight_offset" in loss else None
    teacher = build(config.network, 4).eval() if taught else None
    learner = Learner(build(config.network, 4), config, 10, weights, teacher=teacher)
    images = torch.randint(0, 256, (2, 3, 48, 64), dtype=torch.uint8)
    target = torch.randint(0, 4, (2, 48, 64), dtype=torch.uint8)
    with Waits() as waits:
        learner.step([(images, target), (images, target)])
    assert waits.found == ["_local_scalar_dense"]


def test_a_wait_is_noticed() -> None:
    """The means of the test above notice each kind."""
    values = torch.arange(4.0)
    with Waits() as waits:
        float(values.sum())
        values[values > 1]
        values.nonzero()
    assert waits.found == ["_local_scalar_dense", "index", "nonzero"]
