"""Answers what the protocol asks of the server, its models and their repository.

Each answers with JSON, which gRPC's messages are made from, and takes the fields of its message as
keyword arguments.

Sources: Open Inference Protocol, inference_rest.md; Triton's extensions for the model
configuration, statistics and the model repository, as far as its perf_analyzer and clients ask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from service.api.oip.statistics import Statistics
from service.api.oip.tensors import INPUT, LABEL_MAP, MAX_IMAGES, OUTPUTS, SCORES
from service.core.segmenter import Segmenter
from service.core.types import ModelState, ModelStatus, VersionStatus
from service.errors import (
    InvalidParameter,
    quoted,
)

Document = dict[str, Any]
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


class Operations:
    """Answers everything but inference; REST and gRPC share one."""

    def __init__(
        self,
        segmenter: Segmenter,
        statistics: Statistics,
        *,
        ready: Callable[[], bool],
    ) -> None:
        """ready: whether new requests are wanted."""
        self._segmenter = segmenter
        self._statistics = statistics
        self._ready = ready

    def server_live(self) -> Document:
        return {"live": True}

    def server_ready(self) -> Document:
        # The protocol's text says `live` here, and its clients read `ready`.
        return {"live": True, "ready": self._ready()}

    def server_metadata(self) -> Document:
        return SERVER

    def model_ready(self, name: str, version: str = "") -> Document:
        model, status = self._find(name, version)
        ready = status.state is ModelState.READY and self._ready()
        return {"name": model.name, "ready": ready}

    def model_metadata(self, name: str, version: str = "") -> Document:
        model, status = self._find(name, version)
        return {
            "name": model.name,
            "versions": [status.version for status in model.versions],
            "platform": "onnx",
            "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, -1, -1, 3]}],
            "outputs": [
                {"name": output, "datatype": OUTPUTS[output], "shape": [-1, *dims]}
                for output, dims in _outputs(status)
            ],
        }

    def model_config(self, name: str, version: str = "") -> Document:
        """Describes a version in Triton's terms: dims without the first."""
        model, status = self._find(name, version)
        return {
            "name": model.name,
            "platform": "onnx",
            "backend": "fcn-serve",
            "max_batch_size": MAX_IMAGES,
            "input": [{"name": INPUT, "data_type": "TYPE_UINT8", "dims": [-1, -1, 3]}],
            "output": [
                {"name": output, "data_type": f"TYPE_{OUTPUTS[output]}", "dims": dims}
                for output, dims in _outputs(status)
            ],
            "dynamic_batching": {},
        }

    def model_statistics(self, name: str = "", version: str = "") -> Document:
        """Describes the model and version named, or all."""
        models = [self._find(name, version)[0]] if name else self._segmenter.models()
        return {
            "model_stats": [
                {
                    "name": model.name,
                    "version": status.version,
                    **self._statistics[model.name, status.version].to_json(),
                }
                for model in models
                for status in model.versions
                if not version or status.version == version
            ]
        }

    def repository_index(self, ready: bool = False, repository_name: str = "") -> list[Document]:
        """Lists the models. ready: those only."""
        return [
            {
                "name": entry.name,
                "version": entry.version,
                "state": _STATES[entry.state],
                "reason": entry.reason,
            }
            for entry in self._segmenter.index()
            if entry.state is ModelState.READY or not ready
        ]

    async def load(self, name: str, parameters: Any) -> None:
        """Loads a model.

        parameters: refused, whatever they are: no files are taken from callers, and no settings.

        Raises: ServiceError.
        """
        if parameters:
            raise InvalidParameter(
                f"the parameters {quoted(', '.join(map(str, parameters)))} are not taken: a model "
                "and its settings come out of the model repository's folder"
            )
        await self._segmenter.load(name)

    async def unload(self, name: str) -> None:
        """Raises: ServiceError."""
        await self._segmenter.unload(name)

    def _find(self, name: str, version: str) -> tuple[ModelStatus, VersionStatus]:
        """Raises: UnknownModel, UnknownVersion, InvalidParameter."""
        return self._segmenter.status(name, version)


def _outputs(version: VersionStatus) -> list[tuple[str, list[int]]]:
    """Lists name and dims of each output, without the first.

    Not the overlay, which is for people: clients such as perf_analyzer ask for all that is listed.
    """
    found = [(LABEL_MAP, [-1, -1])]
    if version.contract.outputs.logits is not None:
        found += [(name, [len(version.contract.classes), -1, -1]) for name in SCORES]
    return found
