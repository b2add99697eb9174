"""Settings from flags and environment, and their page."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

import pytest

from cli import serve as command
from service.config import ApiConfig, SegmenterConfig
from service.setting_values import parse_sizes
from service.settings import (
    Settings,
    SettingsError,
    environment_name,
    load_settings,
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


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"http_port": "x"}, "FCN_HTTP_PORT='x'"),
        ({"max_batch": "0"}, "FCN_MAX_BATCH='0'"),
        ({"latency_target_s": "-1"}, "FCN_LATENCY_TARGET_S='-1'"),
        ({"log_format": "xml"}, "FCN_LOG_FORMAT='xml'"),
        ({"root_path": "fcn"}, "FCN_ROOT_PATH='fcn': give the path alone"),
        ({"root_path": "https://x/fcn"}, "such as /fcn"),
        ({"root_path": "/a//b"}, "a slash before each part"),
        ({"cors_origins": "app.example.com"}, "'app.example.com' is no origin: give scheme"),
        ({"cors_origins": "https://a.example/"}, "FCN_CORS_ORIGINS='https://a.example/'"),
        ({"cors_origins": "https://a.example,null"}, "'null' is no origin"),
        ({"cors_origins": "*,https://a.example"}, "leave the others out"),
        ({"http_port": "1", "grpc_port": "1"}, "FCN_HTTP_PORT and FCN_GRPC_PORT are both 1"),
        ({"grpc_port": "1", "admin_port": "1"}, "FCN_GRPC_PORT and FCN_ADMIN_PORT are both 1"),
        ({"http_port": "x", "max_queue": "y"}, "FCN_HTTP_PORT.*; FCN_MAX_QUEUE"),
        ({"devices": "0,"}, "FCN_DEVICES='0,'"),
        ({"devices": "GPU-1"}, "FCN_DEVICES='GPU-1'"),
        ({"gpu_mem_limit_bytes": "0"}, "FCN_GPU_MEM_LIMIT_BYTES='0'"),
        ({"provider": "rocm"}, "FCN_PROVIDER='rocm'"),
        ({"engine": "tvm"}, "FCN_ENGINE='tvm'"),
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
        (b"\xff\xfe\x00", "cannot be read: it is not UTF-8 text"),
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


def test_the_configs_have_the_settings_defaults() -> None:
    settings = load_settings()
    # Whoever embeds a segmenter trusts his files; a server does not.
    assert settings.segmenter_config() == SegmenterConfig(decode="processes")
    assert settings.api_config() == ApiConfig()


def test_no_setting_of_the_segmenter_is_left_out() -> None:
    """Every field of a config is filled from a setting: none keeps its default by oversight."""
    given = {
        "model_repository": "elsewhere",
        "model_poll_s": "1.5",
        "default_model": "fcn",
        "provider": "cuda",
        "provider_options": '{"cuda": {"use_tf32": false, "gpu_external_alloc": 7}}',
        "engine": "openvino",
        "precision": "fp32",
        "cache_dir": "cache",
        "devices": "1,0",
        "gpu_mem_limit_bytes": "1000",
        "instances": "3",
        "intra_op_threads": "2",
        "alone_threads": "4",
        "warm_up_sizes": "360x480,500x500",
        "pool_workers": "5",
        "hooks": "blur,alert",
        "max_image_bytes": "11",
        "max_image_pixels": "12",
        "max_inflight": "13",
        "max_inflight_bytes": "14",
        "max_inflight_pixels": "15",
        "max_queue": "16",
        "max_wait_ms": "1700",
        "max_batch": "18",
        "max_batch_pixels": "19",
        "max_whole_pixels": "21",
        "stuck_after_s": "20",
        "max_uploads": "22",
        "max_uploads_bytes": "23",
        "upload_timeout_s": "24",
        "deadline_ms": "25000",
        "latency_target_s": "0.26",
        "latency_target_pixels": "9",
        "stream_window": "27",
        "grpc_compression": "gzip",
        "root_path": "/fcn",
        "cors_origins": "https://app.example.com, http://[::1]:5173",
        "admin_port": "8003",
        "drain_delay_s": "28",
        "drain_s": "29",
        "limits": "requests_s=30",
    }
    settings = load_settings(given)
    for made, default in (
        (settings.segmenter_config(), SegmenterConfig()),
        (settings.api_config(), ApiConfig()),
    ):
        same = [f.name for f in fields(made) if getattr(made, f.name) == getattr(default, f.name)]
        assert same == []
    segmenter = settings.segmenter_config()
    assert segmenter.devices == (1, 0)
    assert segmenter.warm_up_sizes == ((360, 480), (500, 500))
    assert segmenter.max_wait_s == 1.7
    assert segmenter.provider_options == {"cuda": {"use_tf32": "0", "gpu_external_alloc": "7"}}
    assert settings.api_config().deadline_s == 25
    origins = ("https://app.example.com", "http://[::1]:5173")
    assert settings.api_config().cors_origins == origins


def test_the_largest_image_fits_into_a_tensor() -> None:
    assert ApiConfig(max_image_bytes=10, max_image_pixels=100_000).max_tensor_bytes > 300_000
    assert ApiConfig(max_image_bytes=10**6, max_image_pixels=10).max_tensor_bytes > 10**6


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("FCN_TF32", 'FCN_TF32 is no setting any more: set FCN_PROVIDER_OPTIONS=.*"use_tf32": 0'),
        ("FCN_CUDA_GRAPHS", "FCN_CUDA_GRAPHS is no setting any more: leave it out"),
        ("FCN_MAX_PADDING", "FCN_MAX_PADDING is no setting any more: leave it out"),
        ("FCN_TENSORRT_CACHE", "FCN_PROVIDER_OPTIONS=.*trt_engine_cache_path"),
    ],
)
def test_settings_of_earlier_versions_say_what_is_in_their_place(
    monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=words):
        load_settings()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "give an object by provider"),
        ('{"rocm": {}}', "providers are cuda and tensorrt"),
        ('{"cuda": 1}', "the options of cuda are to be an object"),
        ('{"tensorrt": {"a": []}}', "the options of tensorrt are to be an object"),
    ],
)
def test_provider_options_are_checked(text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=f"FCN_PROVIDER_OPTIONS.*{words}"):
        load_settings({"provider_options": text})


def test_every_setting_has_a_flag_and_help() -> None:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    text = parser.format_help()
    for name, field in Settings.model_fields.items():
        assert "--" + name.replace("_", "-") in text
        assert field.description
    given = parser.parse_args(["--http-port", "8123"])
    settings = {name: given for name, given in vars(given).items() if name in Settings.model_fields}
    assert settings == {"http_port": "8123"}


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
        ({"limits": "requests=1"}, "use each of requests_s, megapixels_s, in_flight once"),
        ({"limits": "in_flight=0"}, "in_flight is to be a number above 0"),
        ({"admin_key": "short"}, "the admin key has 5 characters: give it 16"),
        ({"admin_key_file": "nowhere"}, "FCN_ADMIN_KEY_FILE 'nowhere' cannot be read: No such"),
        ({"admin_key_file": "nowhere", "admin_key": "k" * 16}, "both set"),
    ],
)
def test_a_bad_admin_key_stops_the_start(flags: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        load_settings(flags)
    assert "k" * 16 not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "taken"), [("/fcn", "/fcn"), ("/a/fcn/", "/a/fcn"), ("/", ""), ("", "")]
)
def test_a_prefix_may_end_in_a_slash(given: str, taken: str) -> None:
    assert load_settings({"root_path": given}).api_config().root_path == taken


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("warm_up_sizes", "1x" + "1" * 5000),
        ("devices", "1" * 5000),
        ("provider_options", '{"cuda": ' + "[" * 5000),
        ("provider_options", '{"cuda": {"a": ' + "1" * 5000 + "}}"),
    ],
)
def test_numbers_and_lists_beyond_measure_are_refused(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"FCN_{name.upper()}"):
        load_settings({name: value})
