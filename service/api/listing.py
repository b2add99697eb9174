"""What a client is told of the models, for REST and gRPC alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proto.segmentation.v1 import segmentation_pb2 as pb
from service.core.segmenter import ModelStatus
from service.errors import UnknownModel, quoted


def default_name(models: Sequence[ModelStatus], configured: str | None) -> str | None:
    """The model that answers requests that name none; None when they must name one."""
    if configured is not None:
        return configured
    return models[0].name if len(models) == 1 else None


def known_name(models: Sequence[ModelStatus], configured: str | None, asked: str | None) -> str:
    """The model a failed request was for, or "" so that made-up names make no time series."""
    name = asked or default_name(models, configured)
    return name if name is not None and any(name == model.name for model in models) else ""


def model_named(models: Sequence[ModelStatus], name: str) -> ModelStatus:
    """Raises: UnknownModel."""
    for model in models:
        if model.name == name:
            return model
    raise UnknownModel(
        f"there is no model {quoted(name)}: choose from "
        f"{', '.join(model.name for model in models) or 'none, they are still loading'}"
    )


def model_json(model: ModelStatus, default: str | None) -> dict[str, Any]:
    """One model with all its versions, JSON-ready."""
    return {
        "name": model.name,
        "is_default": model.name == default,
        "default_version": model.default_version,
        "versions": [
            {
                "version": v.version,
                "state": str(v.state),
                "precision": v.precision,
                "provider": v.provider,
                "contract": v.contract.to_dict(),
            }
            for v in model.versions
        ],
    }


def models_message(models: Sequence[ModelStatus], default: str | None) -> pb.ListModelsResponse:
    """All models with all their versions, for gRPC."""
    return pb.ListModelsResponse(
        models=[
            pb.Model(
                name=model.name,
                version=v.version,
                state=str(v.state),
                is_default=model.name == default and v.version == model.default_version,
                architecture=v.contract.architecture,
                precision=v.precision,
                provider=v.provider,
                classes=[
                    pb.ClassInfo(id=c.id, name=c.name, color_rgb=c.color, description=c.description)
                    for c in v.contract.classes
                ],
                contract_json=v.contract.to_json(),
            )
            for model in models
            for v in model.versions
        ]
    )
