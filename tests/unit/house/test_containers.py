"""The files that make and start the images, as far as they can be read without Docker."""

from __future__ import annotations

import re

import pytest
import yaml

from service.settings import unknown_names
from tests.unit.house.pages import ROOT

COMPOSE = ("docker-compose.yml", "docker-compose.gpu.yml")


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_sets_what_are_settings(name: str) -> None:
    """Any other name would stop the server at the start."""
    file = yaml.safe_load((ROOT / name).read_text())
    environment = file["services"]["fcn"]["environment"]
    assert environment
    assert unknown_names(environment) == []


@pytest.mark.parametrize("name", COMPOSE)
def test_named_volumes_are_declared(name: str) -> None:
    file = yaml.safe_load((ROOT / name).read_text())
    for service in file["services"].values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source.startswith(".") or source in file["volumes"]


def test_the_cache_of_tensorrt_is_on_a_volume_the_user_may_write_to() -> None:
    service = yaml.safe_load((ROOT / COMPOSE[1]).read_text())["services"]["fcn"]
    folder = service["environment"]["FCN_TENSORRT_CACHE"]
    assert f"tensorrt:{folder}" in service["volumes"]
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert f"mkdir {folder} && chown 10001:10001 {folder}" in dockerfile
    assert re.findall(r"^USER (\S+)$", dockerfile, re.M)[-1] == "10001:10001"
