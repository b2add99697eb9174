"""Reads the settings whose one line of text holds several values."""

from __future__ import annotations

import json
import os
from typing import Final

from service.config import ProviderOptions

_GPU_PROVIDERS: Final = ("cuda", "tensorrt")


def otlp_protocol() -> str:
    """Reads OpenTelemetry's own variables. Source: its OTLP exporter specification."""
    names = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    return next((value for name in names if (value := os.environ.get(name))), "http/protobuf")


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Reads `360x480,480x640` as (height, width) of each."""
    sizes = [item.split("x") for item in text.split(",") if item]
    return tuple((int(height), int(width)) for height, width in sizes)


def parse_provider_options(text: str) -> ProviderOptions:
    """Reads `{"cuda": {"use_tf32": 0}}`; numbers and booleans become the runtime's texts.

    Raises: ValueError.
    """
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"FCN_PROVIDER_OPTIONS is not JSON: {error}") from error
    if not isinstance(found, dict) or not set(found) <= set(_GPU_PROVIDERS):
        raise ValueError(
            'FCN_PROVIDER_OPTIONS: give an object by provider, such as {"cuda": {"use_tf32": 0}}; '
            f"providers are {' and '.join(_GPU_PROVIDERS)}"
        )
    for provider, options in found.items():
        if not isinstance(options, dict) or not all(
            isinstance(value, str | int | float) for value in options.values()
        ):
            raise ValueError(
                f"FCN_PROVIDER_OPTIONS: the options of {provider} are to be an object of texts, "
                "numbers and booleans"
            )
    return {
        provider: {
            name: str(int(value)) if isinstance(value, bool) else str(value)
            for name, value in options.items()
        }
        for provider, options in found.items()
    }
