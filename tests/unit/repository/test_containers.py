"""The files that make and start the images, as far as they can be read without Docker."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.setting_values import parse_provider_options
from service.settings import Settings, unknown_names
from tests.unit.repository.pages import ROOT

COMPOSE = ("docker-compose.yml", "docker-compose.gpu.yml")


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_sets_what_are_settings(name: str) -> None:
    """Any other name would stop the server at the start."""
    file = yaml.safe_load((ROOT / name).read_text())
    environment = file["services"]["fcn"]["environment"]
    assert environment
    assert unknown_names(environment) == []


def test_the_override_in_the_documentation_sets_what_are_settings() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    (snippet,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.M | re.S)
    service = yaml.safe_load(snippet)["services"]["fcn"]
    assert unknown_names(service["environment"]) == []
    (keys,) = service["volumes"]
    folder = keys.split(":")[1]
    assert service["environment"]["FCN_API_KEYS_FILE"].startswith(f"{folder}/")
    compose = yaml.safe_load((ROOT / COMPOSE[0]).read_text())["services"]["fcn"]
    grace_s = int(compose["stop_grace_period"].removesuffix("s"))
    assert int(service["environment"]["FCN_DRAIN_DELAY_S"]) + Settings().drain_s < grace_s


def test_every_stage_that_installs_takes_an_index() -> None:
    """A stage built without BuildKit does not know the arguments of the one it is made from."""
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    for stage in re.split(r"^FROM ", dockerfile, flags=re.M)[1:]:
        before, installs, _ = stage.partition("/pip install")
        if installs:
            assert {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"} <= set(
                re.findall(r"^ARG (\w+)$", before, re.M)
            )


def test_the_image_has_compiled_what_a_server_imports_and_nothing_of_training() -> None:
    """Nothing else compiles it: the server's user may write nowhere."""
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
    (install,) = re.findall(r"^RUN .*/pip install .*\./fcn_client.*$", dockerfile, re.M)
    assert " --no-compile " in install
    (compiled,) = re.findall(r"-m compileall -q (.*)$", install)
    code = (
        "import sys, cli.main, cli.serve, service.app, service.core.images.worker\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] in sys.argv))"
    )
    ours = ("cli", "fcn_client", "model", "service", "training")
    done = subprocess.run(
        [sys.executable, "-c", code, *ours], capture_output=True, text=True, check=True, cwd=ROOT
    )
    imported = {Path(file).relative_to(ROOT).as_posix() for file in done.stdout.split()}
    assert len(imported) > 50
    names = compiled.split()
    assert {f for f in imported if not any(f == n or f.startswith(f"{n}/") for n in names)} == set()
    assert {name.split("/")[0] for name in names} == {"cli", "fcn_client", "model", "service"}
    assert all((ROOT / name).exists() for name in names)
    of_model = {file for file in imported if file.startswith("model/")}
    assert {name for name in names if name.startswith("model")} == of_model


@pytest.mark.parametrize("name", COMPOSE)
def test_named_volumes_are_declared(name: str) -> None:
    file = yaml.safe_load((ROOT / name).read_text())
    for service in file["services"].values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source.startswith(".") or source in file["volumes"]


def test_the_cache_of_tensorrt_is_on_a_volume_the_user_may_write_to() -> None:
    service = yaml.safe_load((ROOT / COMPOSE[1]).read_text())["services"]["fcn"]
    options = parse_provider_options(service["environment"]["FCN_PROVIDER_OPTIONS"])
    folder = options["tensorrt"]["trt_engine_cache_path"]
    assert f"tensorrt:{folder}" in service["volumes"]
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert f"mkdir {folder} && chown 10001:10001 {folder}" in dockerfile
    assert re.findall(r"^USER (\S+)$", dockerfile, re.M)[-1] == "10001:10001"


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / COMPOSE[0]).read_text())["services"]
    return found


def test_the_server_comes_alone_and_monitoring_by_its_profile() -> None:
    profiles = {name: service.get("profiles") for name, service in services().items()}
    watching = dict.fromkeys(("prometheus", "alertmanager", "grafana"), ["monitoring"])
    assert profiles == {"fcn": None, **watching}


@pytest.mark.parametrize("name", services())
def test_every_service_is_bounded_and_has_no_rights(name: str) -> None:
    service = services()[name]
    assert service["mem_limit"] and service["pids_limit"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", services())
def test_whoever_is_waited_for_has_a_health_check(name: str) -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    for other, how in services()[name].get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert "healthcheck" in services()[other] or (
            other == "fcn" and re.search(r"^HEALTHCHECK ", dockerfile, re.M)
        )


def test_images_come_from_no_host_of_ours() -> None:
    """Names without a host mean Docker Hub; what is fetched has a version."""
    for name, service in services().items():
        if name != "fcn":
            assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", service["image"])
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert re.findall(r"^ARG PYTHON_IMAGE=(.*)$", dockerfile, re.M) == ["python:3.11-slim-bookworm"]


def test_what_has_no_password_is_published_to_this_machine_alone() -> None:
    for name, service in services().items():
        if name != "fcn":
            assert all(":-127.0.0.1:" in port for port in service["ports"])


def test_monitoring_reads_what_is_mounted_and_asks_who_is_there() -> None:
    found = services()
    for service in found.values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (ROOT / source).is_dir(), source
    folder = ROOT / "docker"
    config = yaml.safe_load((folder / "prometheus" / "prometheus.yml").read_text())
    (source,) = yaml.safe_load(
        (folder / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text()
    )["datasources"]
    (provider,) = yaml.safe_load(
        (folder / "grafana" / "provisioning" / "dashboards" / "fcn.yml").read_text()
    )["providers"]
    (managers,) = config["alerting"]["alertmanagers"]
    (scraped,) = config["scrape_configs"]
    asked = {
        *(t for c in managers["static_configs"] for t in c["targets"]),
        *(t for c in scraped["static_configs"] for t in c["targets"]),
        source["url"].removeprefix("http://"),
    }
    assert asked == {"alertmanager:9093", "fcn:8000", "prometheus:9090"}
    assert scraped["job_name"] == "fcn", "as the rules call it"
    mounted = [volume.split(":")[1] for volume in found["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounted and "/etc/grafana/provisioning" in mounted
    every = config["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == every
    assert "--storage.tsdb.retention.time=45d" in found["prometheus"]["command"]
