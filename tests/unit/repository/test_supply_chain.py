"""Holds what is installed to what was tested: versions agree, and images take no unhashed wheel."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.unit.repository.pages import ROOT

_PIN = re.compile(r"^([a-z0-9._-]+)==([^\s;\\]+)", re.M)
_HASHED = re.compile(
    r"^([a-z0-9._-]+)==\S+(?: ; .*?)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.M
)
KINDS = ("cpu", "gpu", "build")


def locked(kind: str) -> str:
    return (ROOT / "docker" / f"requirements-{kind}.txt").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_every_pin_has_its_hashes(kind: str) -> None:
    text = locked(kind)
    assert {name for name, _ in _HASHED.findall(text)} == {name for name, _ in _PIN.findall(text)}


@pytest.mark.parametrize("kind", KINDS)
def test_versions_are_the_tested_ones(kind: str) -> None:
    tested = dict(_PIN.findall((ROOT / "constraints.txt").read_text()))
    found = dict(_PIN.findall(locked(kind)))
    assert found
    differing = {name for name, version in found.items() if tested.get(name, version) != version}
    assert differing == set(), "run `make lock`"


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_all_that_the_server_names_is_locked(kind: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"][kind]]
    names = {re.match(r"[\w.-]+", line)[0].lower() for line in wanted}  # type: ignore[index]
    assert names <= {name for name, _ in _PIN.findall(locked(kind))}, "run `make lock`"


def test_the_images_install_by_hash_alone() -> None:
    """But our own code, and TensorRT, which comes as a name that the builder gives."""
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
    installs = [line for line in dockerfile.splitlines() if "/pip install" in line]
    assert len(installs) > 3
    for line in installs:
        assert (
            "--only-binary :all: --require-hashes -r" in line
            or "--no-deps --no-build-isolation" in line
            or '"$TENSORRT"' in line
        )


def test_what_bandit_passes_over_has_its_number() -> None:
    bare = [
        str(path.relative_to(ROOT))
        for folder in ("cli", "fcn_client", "model", "service", "training")
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "# nosec" in line and not re.search(r"# nosec B\d+(?: B\d+)*(?:$|  # )", line)
    ]
    assert bare == []
