"""The files that make and start the images, as far as they can be read without Docker."""

from __future__ import annotations

import re

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
