"""Tells clients of the models, over REST and gRPC alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.api.stubs import segmentation_pb2 as pb
from service.core.types import IndexEntry, ModelStatus
from service.errors import UnknownModel, quoted


def models_json(
    models: Sequence[ModelStatus], index: Sequence[IndexEntry], default: str | None
) -> list[dict[str, Any]]:
    """Describes every model of the repository, also those that do not serve, JSON-ready.

    default: the model that answers requests which name none.
    """
    serving = {model.name: model for model in models}
    return [
        _model_json(name, serving.get(name), [e for e in index if e.name == name], default)
        for name in sorted({*serving, *(entry.name for entry in index)})
    ]


def model_json(
    models: Sequence[ModelStatus], index: Sequence[IndexEntry], default: str | None, name: str
) -> dict[str, Any]:
    """Describes one of them, by its own name. Raises: UnknownModel."""
    found = models_json(models, index, default)
    for model in found:
        if model["name"] == name:
            return model
    raise UnknownModel(
        f"there is no model {quoted(name)}: choose from "
        f"{', '.join(model['name'] for model in found) or 'none, they are still loading'}"
    )


def _model_json(
    name: str, model: ModelStatus | None, index: Sequence[IndexEntry], default: str | None
) -> dict[str, Any]:
    loaded = {v.version: v for v in model.versions} if model else {}
    versions = []
    for entry in index:
        version: dict[str, Any] = {"version": entry.version, "state": str(entry.state)}
        if entry.reason:
            version["reason"] = entry.reason
        if v := loaded.get(entry.version):
            version["precision"] = v.precision
            version["provider"] = v.provider
            version["engine"] = v.engine
            version["contract"] = v.contract.to_dict()
        versions.append(version)
    aliases = model.aliases if model else ()
    return {
        "name": name,
        "description": model.description if model else "",
        "is_default": name == default,
        "default_version": model.default_version if model else None,
        "aliases": [{"name": alias, "version": version} for alias, version in aliases],
        "versions": versions,
    }


def models_message(models: Sequence[ModelStatus], default: str | None) -> pb.ListModelsResponse:
    """Describes all models that serve with all their versions, for gRPC."""
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
                engine=v.engine,
                description=model.description,
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
