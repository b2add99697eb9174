"""Settings from flags and environment, and their page."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from cli import serve as command
from service.core.engines.gpus import GpuOptions
from service.core.segmenter import Limits
from service.settings import (
    Settings,
    SettingsError,
    environment_name,
    load_settings,
    parse_sizes,
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
        ({"devices": "0,"}, "FCN_DEVICES='0,'"),
        ({"devices": "GPU-1"}, "FCN_DEVICES='GPU-1'"),
        ({"gpu_mem_limit_bytes": "0"}, "FCN_GPU_MEM_LIMIT_BYTES='0'"),
        ({"provider": "rocm"}, "FCN_PROVIDER='rocm'"),
        ({"provider": "tensorrt", "cuda_graphs": "1"}, "FCN_CUDA_GRAPHS goes with .*cuda, not"),
    ],
)
def test_bad_values_are_named(flags: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        load_settings(flags)
    assert "\n" not in str(caught.value)


def test_a_settings_file_is_below_environment_and_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tuned.env"
    file.write_text("# a comment\nFCN_HTTP_PORT=9001\nFCN_GRPC_PORT=9002\nFCN_INSTANCES=3\n")
    monkeypatch.setenv("FCN_SETTINGS_FILE", str(file))
    monkeypatch.setenv("FCN_GRPC_PORT", "9003")
    settings = load_settings({"http_port": "9004"})
    assert (settings.http_port, settings.grpc_port, settings.instances) == (9004, 9003, 3)
    other = tmp_path / "other.env"
    other.write_text("FCN_INSTANCES=5\n")
    assert load_settings({"settings_file": str(other)}).instances == 5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file.*fcn tune"),
        (b"\xff\xfe\x00", "cannot be read: it is not text"),
        (b"FCN_INSTANCE=2\n", "FCN_INSTANCE is not a setting; the closest is FCN_INSTANCES"),
        (b"PATH=/bin\n", "PATH is not a setting"),
        (b"FCN_SETTINGS_FILE=other.env\n", "names no other"),
        (b"FCN_INSTANCES=0\n", "FCN_INSTANCES='0'"),
    ],
)
def test_a_bad_settings_file_stops_the_start(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "tuned.env"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=words):
        load_settings({"settings_file": str(file)})


@pytest.mark.parametrize("text", ["360", "360x", "360x480,", "a x b"])
def test_sizes_are_checked(text: str) -> None:
    with pytest.raises(SettingsError, match="FCN_WARM_UP_SIZES"):
        load_settings({"warm_up_sizes": text})


def test_sizes_are_height_and_width() -> None:
    assert parse_sizes("") == ()
    assert parse_sizes("360x480,37x41") == ((360, 480), (37, 41))


def test_settings_of_gpus_become_options(tmp_path: Path) -> None:
    assert load_settings().gpu_options() == GpuOptions()
    flags = {
        "devices": "1,0",
        "instances": "3",
        "gpu_mem_limit_bytes": "1000",
        "tf32": "0",
        "cuda_graphs": "1",
        "tensorrt_cache": str(tmp_path),
        "warm_up_sizes": "360x480,500x500",
        "max_batch": "16",
    }
    assert load_settings(flags).gpu_options() == GpuOptions(
        devices=(1, 0),
        instances=3,
        memory_limit_bytes=1000,
        tf32=False,
        graphs=True,
        tensorrt_cache=tmp_path,
        sizes=((360, 480), (500, 500)),
        max_batch=16,
    )


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
        "padding",
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
    return "" if default in (None, "") else f"`{default}`"


def test_the_admin_key_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("a key of ample length\n")
    assert load_settings({"admin_key_file": str(file)}).read_admin_key() == "a key of ample length"
    assert load_settings({"admin_key": "k" * 16}).read_admin_key() == "k" * 16
    assert load_settings({}).read_admin_key() is None
    assert "k" * 16 not in repr(load_settings({"admin_key": "k" * 16}))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"admin_key": "short"}, "the admin key has 5 characters: give it 16"),
        ({"admin_key_file": "nowhere"}, "FCN_ADMIN_KEY_FILE 'nowhere' cannot be read: No such"),
        ({"admin_key_file": "nowhere", "admin_key": "k" * 16}, "both set"),
    ],
)
def test_a_bad_admin_key_stops_the_start(flags: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        load_settings(flags)
    assert "k" * 16 not in str(caught.value)
