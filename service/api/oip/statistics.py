"""Counts inference requests as Triton's statistics extension tells them.

Source: Triton's extension_statistics.md, as far as its perf_analyzer and clients ask.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from service.core.types import SegmentReply

_STAGES: Final = {
    "queue": "queue_s",
    "compute_input": "decode_s",
    "compute_infer": "infer_s",
    "compute_output": "render_s",
}
"""Triton's name of a stage, and ours."""


_DURATIONS: Final = ("success", "fail", *_STAGES)


@dataclass(slots=True)
class Counts:
    """Holds what one version of a model has done in this protocol since the start.

    The metrics count otherwise, not by version nor by size of the batch, so neither can be had from
    the other. durations: count and seconds, by Triton's name; batches: by size, how many, and
    seconds by Triton's name.
    """

    last_inference_ms: int = 0
    images: int = 0
    executions: float = 0.0
    durations: dict[str, tuple[int, float]] = field(
        default_factory=lambda: dict.fromkeys(_DURATIONS, (0, 0.0))
    )
    batches: dict[int, dict[str, float]] = field(default_factory=dict)

    def answered(self, replies: Sequence[SegmentReply], seconds: float) -> None:
        """Counts one request. seconds: from its complete upload to its answer."""
        self.last_inference_ms = round(1000 * time.time())
        self._add("success", seconds)
        for name, attribute in _STAGES.items():
            # Its images are worked on side by side: the slowest is what the request took.
            self._add(name, max(getattr(r.timings, attribute) for r in replies))
        for reply in replies:
            self.images += 1
            self.executions += 1 / reply.batch_size
            batch = self.batches.setdefault(reply.batch_size, dict.fromkeys(("n", *_STAGES), 0.0))
            # Each of its images reports a batch: together they make one.
            batch["n"] += 1 / reply.batch_size
            for name, attribute in _STAGES.items():
                batch[name] += getattr(reply.timings, attribute) / reply.batch_size

    def failed(self, seconds: float) -> None:
        self._add("fail", seconds)

    def to_json(self) -> dict[str, Any]:
        """Describes them as Triton does."""
        return {
            "last_inference": self.last_inference_ms,
            "inference_count": self.images,
            "execution_count": round(self.executions),
            "inference_stats": {
                name: {"count": count, "ns": round(1e9 * total_s)}
                for name, (count, total_s) in self.durations.items()
            },
            "batch_stats": [
                {
                    "batch_size": size,
                    **{
                        name: {"count": round(batch["n"]), "ns": round(1e9 * batch[name])}
                        for name in _STAGES
                        if name != "queue"
                    },
                }
                for size, batch in sorted(self.batches.items())
            ],
        }

    def _add(self, name: str, seconds: float) -> None:
        count, total_s = self.durations[name]
        self.durations[name] = count + 1, total_s + seconds


Statistics = defaultdict[tuple[str, str], Counts]
"""Keeps them by model and version; REST and gRPC share one."""
