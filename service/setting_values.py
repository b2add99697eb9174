"""Reads the settings whose one line of text holds several values, and names those of the past."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Final

from service.config import ProviderOptions

_GPU_PROVIDERS: Final = ("cuda", "tensorrt")
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
"""Matches an origin as browsers write it: small letters, no path, no slash at its end."""
IN_PLACE_OF: Final = {
    "FCN_TF32": 'set FCN_PROVIDER_OPTIONS=\'{"cuda": {"use_tf32": 0}}\' for exact products',
    "FCN_CUDA_GRAPHS": "leave it out: runs are no longer replayed as CUDA graphs",
    "FCN_MAX_PADDING": "leave it out: images of several sizes do not share an inference any more",
    "FCN_TENSORRT_CACHE": (
        'set FCN_PROVIDER_OPTIONS=\'{"tensorrt": {"trt_engine_cache_enable": 1, '
        '"trt_engine_cache_path": "FOLDER"}}\''
    ),
}
"""Advice about settings that earlier versions had."""


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


def checked(parse: Callable[[str], object]) -> Callable[[str], str]:
    """Makes what leaves a text as it is where `parse` can read it, and raises what that raises."""

    def check(text: str) -> str:
        parse(text)
        return text

    return check


def parse_root_path(path: str) -> str:
    """Takes a slash off the end of a prefix such as `/fcn`. Raises: ValueError."""
    path = path.rstrip("/")
    if not re.fullmatch(r"((/[A-Za-z0-9._~-]+)+)?", path):
        raise ValueError("give the path alone, with a slash before each part, such as /fcn")
    return path


def parse_origins(text: str) -> tuple[str, ...]:
    """Reads `https://a.example,http://localhost:5173`, or `*` for every origin.

    Raises: ValueError.
    """
    origins = tuple(part for item in text.split(",") if (part := item.strip()))
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"{origin!r} is no origin: give scheme and host, and the port if it is not the "
                "usual one, as browsers do: https://app.example.com,http://localhost:5173"
            )
    if "*" in origins and len(origins) > 1:
        raise ValueError("* allows every origin: leave the others out")
    return origins
