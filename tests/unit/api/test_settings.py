"""Settings from flags and environment, and their page."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from cli import serve as command
from service.core.segmenter import Limits
from service.settings import (
    Settings,
    SettingsError,
    environment_name,
    load_settings,
    unknown_names,
)

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(environment_name(name), raising=False)


def test_flags_win_over_environment_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCN_HTTP_PORT", "9001")
    monkeypatch.setenv("FCN_GRPC_PORT", "9002")
    monkeypatch.setenv("FCN_HOST", "")  # empty counts as absent
    settings = load_settings({"http_port": "9003"})
    assert (settings.http_port, settings.grpc_port) == (9003, 9002)
    assert settings.host == "127.0.0.1"


def test_unknown_names_are_told_the_closest() -> None:
    assert unknown_names(["PATH", "FCN_HTTP_PORT", "fcn_host"]) == []
    (sentence,) = unknown_names(["FCN_PORT"])
    assert sentence.startswith("FCN_PORT is not a setting")
    assert "FCN_HTTP_PORT" in sentence or "FCN_GRPC_PORT" in sentence


def test_unknown_names_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCN_API_KEYS", "x")
    with pytest.raises(SettingsError, match="FCN_API_KEYS is not a setting"):
        load_settings()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"http_port": "x"}, "FCN_HTTP_PORT='x'"),
        ({"max_batch": "0"}, "FCN_MAX_BATCH='0'"),
        ({"latency_target_s": "-1"}, "FCN_LATENCY_TARGET_S='-1'"),
        ({"log_format": "xml"}, "FCN_LOG_FORMAT='xml'"),
        ({"http_port": "1", "grpc_port": "1"}, "FCN_HTTP_PORT and FCN_GRPC_PORT are both 1"),
        ({"http_port": "x", "max_queue": "y"}, "FCN_HTTP_PORT.*; FCN_MAX_QUEUE"),
    ],
)
def test_bad_values_are_named(flags: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        load_settings(flags)
    assert "\n" not in str(caught.value)


def test_limits_have_the_cores_defaults() -> None:
    settings, limits = load_settings(), Limits()
    for name in (
        "image_bytes",
        "image_pixels",
        "inflight",
        "inflight_bytes",
        "inflight_pixels",
        "queue",
        "batch",
        "batch_pixels",
    ):
        assert getattr(settings, f"max_{name}") == getattr(limits, f"max_{name}")
    assert settings.max_wait_ms == 1000 * limits.max_wait_s


def test_every_setting_has_a_flag_and_help() -> None:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    text = parser.format_help()
    for name, field in Settings.model_fields.items():
        assert "--" + name.replace("_", "-") in text
        assert field.description
    given = parser.parse_args(["--http-port", "8123"])
    assert vars(given) == {"http_port": "8123"}


def test_the_page_lists_every_setting() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `FCN_")]
    expected = [
        f"| `{environment_name(name)}` | {_shown(field.default)} | "
        f"{' '.join((field.description or '').split())} |"
        for name, field in Settings.model_fields.items()
    ]
    assert rows == expected


def _shown(default: object) -> str:
    return "" if default is None else f"`{default}`"
