"""What the Open Inference Protocol says of models, as JSON, which gRPC's messages are made from.

Sources: Open Inference Protocol, inference_rest.md; Triton's extensions for the model
configuration, statistics and the model repository, as far as its perf_analyzer and clients ask.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from service.api.models import model_named
from service.api.oip.tensors import INPUT, LABEL_MAP, MAX_IMAGES, OUTPUTS, SCORES
from service.core.segmenter import (
    IndexEntry,
    ModelState,
    ModelStatus,
    SegmentReply,
    VersionStatus,
)
from service.errors import UnknownVersion, quoted

SERVER: Final = {
    "name": "fcn-serve",
    "version": "1",
    "extensions": [
        "binary_tensor_data",
        "model_configuration",
        "model_repository",
        "statistics",
    ],
}
_STATES: Final = {
    ModelState.READY: "READY",
    ModelState.LOADING: "LOADING",
    ModelState.DRAINING: "UNLOADING",
    ModelState.FAILED: "UNAVAILABLE",
    ModelState.UNLOADED: "UNAVAILABLE",
}


def version_named(
    models: Sequence[ModelStatus], name: str, version: str | None
) -> tuple[ModelStatus, VersionStatus]:
    """Finds one that serves. version: None or "" for the default one.

    Raises: UnknownModel, UnknownVersion.
    """
    model = model_named(models, name)
    version = version or dict(model.aliases).get(name) or model.default_version
    for status in model.versions:
        if status.version == version:
            return model, status
    raise UnknownVersion(
        f"model {model.name} has no version {quoted(version)}: choose from "
        f"{', '.join(status.version for status in model.versions)}"
    )


def metadata(model: ModelStatus, version: VersionStatus) -> dict[str, Any]:
    return {
        "name": model.name,
        "versions": [status.version for status in model.versions],
        "platform": "onnx",
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, -1, -1, 3]}],
        "outputs": [
            {"name": name, "datatype": OUTPUTS[name], "shape": [-1, *dims]}
            for name, dims in _outputs(version)
        ],
    }


def config(model: ModelStatus, version: VersionStatus) -> dict[str, Any]:
    """Describes a version in Triton's terms: dims without the first."""
    return {
        "name": model.name,
        "platform": "onnx",
        "backend": "fcn-serve",
        "max_batch_size": MAX_IMAGES,
        "input": [{"name": INPUT, "data_type": "TYPE_UINT8", "dims": [-1, -1, 3]}],
        "output": [
            {"name": name, "data_type": f"TYPE_{OUTPUTS[name]}", "dims": dims}
            for name, dims in _outputs(version)
        ],
        "dynamic_batching": {},
    }


def _outputs(version: VersionStatus) -> list[tuple[str, list[int]]]:
    """Lists name and dims of each output, without the first.

    Not the overlay, which is for people: clients such as perf_analyzer ask for all that is listed.
    """
    found = [(LABEL_MAP, [-1, -1])]
    if version.contract.outputs.logits is not None:
        found += [(name, [len(version.contract.classes), -1, -1]) for name in SCORES]
    return found


def index(entries: Sequence[IndexEntry], *, only_ready: bool) -> list[dict[str, str]]:
    return [
        {
            "name": entry.name,
            "version": entry.version,
            "state": _STATES[entry.state],
            "reason": entry.reason,
        }
        for entry in entries
        if entry.state is ModelState.READY or not only_ready
    ]


_STAGES: Final = {
    "queue": "queue_s",
    "compute_input": "decode_s",
    "compute_infer": "infer_s",
    "compute_output": "render_s",
}
"""Triton's name of a stage, and ours."""


_DURATIONS: Final = ("success", "fail", *_STAGES)


@dataclass(slots=True)
class _Counts:
    """Holds what one version of a model has done. durations: count and seconds, by Triton's name;
    batches: by size, how many, and seconds by Triton's name."""

    last_inference_ms: int = 0
    images: int = 0
    executions: float = 0.0
    durations: dict[str, tuple[int, float]] = field(
        default_factory=lambda: dict.fromkeys(_DURATIONS, (0, 0.0))
    )
    batches: dict[int, dict[str, float]] = field(default_factory=dict)

    def add(self, name: str, seconds: float) -> None:
        count, total_s = self.durations[name]
        self.durations[name] = count + 1, total_s + seconds


class Statistics:
    """Counts requests of this protocol since the start, by model and version, as Triton does.

    The metrics count otherwise, not by version nor by size of the batch, so neither can be had from
    the other. REST and gRPC share one.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], _Counts] = {}

    def answered(self, replies: Sequence[SegmentReply], seconds: float) -> None:
        """Counts one request. seconds: from its complete upload to its answer."""
        counts = self._of(replies[0].model, replies[0].version)
        counts.last_inference_ms = round(1000 * time.time())
        counts.add("success", seconds)
        for name, attribute in _STAGES.items():
            # Its images are worked on side by side: the slowest is what the request took.
            counts.add(name, max(getattr(r.timings, attribute) for r in replies))
        for reply in replies:
            counts.images += 1
            counts.executions += 1 / reply.batch_size
            batch = counts.batches.setdefault(reply.batch_size, dict.fromkeys(("n", *_STAGES), 0.0))
            # Each of its images reports a batch: together they make one.
            batch["n"] += 1 / reply.batch_size
            for name, attribute in _STAGES.items():
                batch[name] += getattr(reply.timings, attribute) / reply.batch_size

    def failed(self, model: str, version: str, seconds: float) -> None:
        self._of(model, version).add("fail", seconds)

    def to_json(
        self, models: Sequence[ModelStatus], name: str | None, version: str | None
    ) -> dict[str, Any]:
        """Describes the model and version named, or all. Raises: UnknownModel, UnknownVersion."""
        if name and version:
            version_named(models, name, version)
        chosen = [model_named(models, name)] if name else models
        return {
            "model_stats": [
                self._one(model.name, status.version)
                for model in chosen
                for status in model.versions
                if not version or status.version == version
            ]
        }

    def _of(self, model: str, version: str) -> _Counts:
        return self._counts.setdefault((model, version), _Counts())

    def _one(self, model: str, version: str) -> dict[str, Any]:
        counts = self._counts.get((model, version), _Counts())
        return {
            "name": model,
            "version": version,
            "last_inference": counts.last_inference_ms,
            "inference_count": counts.images,
            "execution_count": round(counts.executions),
            "inference_stats": {
                name: {"count": count, "ns": round(1e9 * total_s)}
                for name, (count, total_s) in counts.durations.items()
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
                for size, batch in sorted(counts.batches.items())
            ],
        }
