"""What a client is told of the models, for REST and gRPC alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.api.stubs import segmentation_pb2 as pb
from service.core.segmenter import IndexEntry, ModelStatus
from service.errors import UnknownModel, quoted


def default_name(models: Sequence[ModelStatus], configured: str | None) -> str | None:
    """Returns the model that answers requests that name none; None when they must name one."""
    if configured is not None:
        return resolve_alias(models, configured)
    return models[0].name if len(models) == 1 else None


def metric_label(models: Sequence[ModelStatus], configured: str | None, asked: str | None) -> str:
    """Names the model a failed request was for, or "", so that made-up names make no series."""
    name = resolve_alias(models, asked) if asked else default_name(models, configured)
    return name if name is not None and any(name == model.name for model in models) else ""


def resolve_alias(models: Sequence[ModelStatus], name: str) -> str:
    """Returns the name of an alias's model; any other name as it is."""
    if any(name == model.name for model in models):
        return name
    for model in models:
        if any(name == alias for alias, _ in model.aliases):
            return model.name
    return name


def model_named(models: Sequence[ModelStatus], name: str) -> ModelStatus:
    """Finds one that serves, by its name or an alias. Raises: UnknownModel."""
    own = resolve_alias(models, name)
    for model in models:
        if model.name == own:
            return model
    raise unknown_model(name, [model.name for model in models])


def unknown_model(name: str, known: Sequence[str]) -> UnknownModel:
    return UnknownModel(
        f"there is no model {quoted(name)}: choose from "
        f"{', '.join(known) or 'none, they are still loading'}"
    )


def models_json(
    models: Sequence[ModelStatus], index: Sequence[IndexEntry], configured: str | None
) -> list[dict[str, Any]]:
    """Describes every model of the repository, also those that do not serve, JSON-ready."""
    serving = {model.name: model for model in models}
    default = default_name(models, configured)
    return [
        _model_json(name, serving.get(name), [e for e in index if e.name == name], default)
        for name in sorted({*serving, *(entry.name for entry in index)})
    ]


def model_json(
    models: Sequence[ModelStatus], index: Sequence[IndexEntry], configured: str | None, name: str
) -> dict[str, Any]:
    """Describes one of them, by its name or an alias. Raises: UnknownModel."""
    name, found = resolve_alias(models, name), models_json(models, index, configured)
    for model in found:
        if model["name"] == name:
            return model
    raise unknown_model(name, [model["name"] for model in found])


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
            version["contract"] = v.contract.to_dict()
        versions.append(version)
    aliases = model.aliases if model else ()
    return {
        "name": name,
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
