"""Variables that Kubernetes and Docker set under our prefix are told from settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.service_links import without_links
from service.settings import Settings, SettingsError, environment_name, load_settings

KUBERNETES = {
    "FCN_SERVICE_HOST": "10.96.14.7",
    "FCN_SERVICE_PORT": "8000",
    "FCN_SERVICE_PORT_HTTP_METRICS": "8000",
    "FCN_PORT": "tcp://10.96.14.7:8000",
    "FCN_PORT_8000_TCP": "tcp://10.96.14.7:8000",
    "FCN_PORT_8000_TCP_ADDR": "10.96.14.7",
    "FCN_PORT_8000_TCP_PORT": "8000",
    "FCN_PORT_8000_TCP_PROTO": "tcp",
    "FCN_PORT_53_UDP": "udp://10.96.14.7:53",
    "FCN_PORT_132_SCTP_PROTO": "sctp",
    "FCN_SERVE_SERVICE_HOST": "fd00:10:96::7",  # of a service called fcn-serve
    "FCN_SERVE_PORT": "tcp://[fd00:10:96::7]:8001",
    "FCN_HTTP_PORT_80_TCP_ADDR": "10.96.14.9",
}
DOCKER = {
    "FCN_NAME": "/web/fcn",
    "FCN_ENV_PATH": "/bin",
    "FCN_ENV_FCN_HTTP_PORT": "8000",
    "FCN_PORT_8000_TCP_START": "tcp://172.17.0.5:8000",
    "FCN_PORT_8000_TCP_PORT_END": "8009",
    "FCN_1_NAME": "/shop_web_1/fcn_1",
    "FCN_1_PORT": "tcp://172.17.0.6:8000",
    "FCN_MODEL_NAME": "/shop/fcn-model",
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(environment_name(name), raising=False)


@pytest.mark.parametrize("name", KUBERNETES)
def test_each_of_kubernetes_is_passed_over_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, KUBERNETES[name])
    assert load_settings() == Settings()


def test_those_of_docker_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in DOCKER.items():
        monkeypatch.setenv(name, value)
    assert load_settings() == Settings()


def test_in_a_settings_file_too(tmp_path: Path) -> None:
    file = tmp_path / "all.env"
    lines = [f"{name}={value}\n" for name, value in (KUBERNETES | DOCKER).items()]
    file.write_text("".join([*lines, "FCN_INSTANCES=3\n"]))
    assert load_settings({"settings_file": str(file)}).instances == 3


def test_an_address_under_a_settings_name_sets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tuned.env"
    file.write_text("FCN_HTTP_PORT=9001\n")
    monkeypatch.setenv("FCN_HTTP_PORT", "tcp://10.96.14.7:80")
    monkeypatch.setenv("FCN_GRPC_PORT", "tcp://10.96.14.8:80")
    settings = load_settings({"settings_file": str(file)})
    assert (settings.http_port, settings.grpc_port) == (9001, 8001)
    assert "FCN_HTTP_PORT is the address of another service" in caplog.text


@pytest.mark.parametrize(
    ("name", "value", "closest"),
    [
        ("FCN_PORT", "9000", "_PORT"),
        ("FCN_REST_PORT", "9000", "_PORT"),
        ("FCN_HTTP_PORTS", "tcp://10.96.14.7:80", "FCN_HTTP_PORT"),
        ("FCN_SERVICE_HOST", "0.0.0.0", ""),
        ("FCN_SERVICE_HOST", "localhost", ""),
        ("FCN_SERVICE_PORT", "http", ""),
        ("FCN_MODEL_NAME", "/srv/models", "FCN_MODEL_"),
        ("FCN_ENV_FILE", "tuned.env", "FCN_"),
        ("FCN_MAX_BATCHES", "4", "FCN_MAX_BATCH"),
    ],
)
@pytest.mark.parametrize("place", ["environment", "file"])
def test_misspelt_settings_still_stop_the_start(
    place: str,
    name: str,
    value: str,
    closest: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "tuned.env"
    file.write_text(f"{name}={value}\n" if place == "file" else "")
    if place == "environment":
        monkeypatch.setenv(name, value)
    message = rf"{name} is not a setting; the closest is FCN_\w*{closest.removeprefix('FCN_')}"
    with pytest.raises(SettingsError, match=message):
        load_settings({"settings_file": str(file)})


def test_variables_of_other_names_stay() -> None:
    assert without_links({"PATH": "/bin", "FCN_HOST": "fcn", "FCN_INSTANCES": None}) == {
        "PATH": "/bin",
        "FCN_HOST": "fcn",
        "FCN_INSTANCES": None,
    }
