"""The client's wheel installs alone, the server's beside it, and neither has the other's files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import need
from tests.drawing import png, street
from tests.serving import ROOT, Server
from tools import make_dist

USER_SCRIPT = """
import sys
from fcn_client import FcnClient, FcnError, Overloaded

def road(url: str, photo: str) -> int:
    with FcnClient(url, timeout_s=30) as client:
        try:
            result = client.segment(photo, classes=[0])
        except Overloaded as error:
            print(error.retry_after_s, error.detail)
            raise
        except (TimeoutError, ConnectionError, FcnError) as error:
            raise SystemExit(str(error))
        print(client.models()[0].name, result.model, result.value.shape, result.timings.infer_s)
        return int((result.value == 0).sum())

print(*(road(url, sys.argv[1]) for url in sys.argv[2:]))
"""


EPOCH = 1_764_547_200  # 2025-12-01


def copied(folder: Path) -> Path:
    """Copies what the distributions are made of, for a build may leave files where it is."""
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name in ("cli", "fcn_client", "model", "proto", "service", "training"):
        ignore = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    return folder


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both sdists and wheels, built without a network."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "out"))
    made = make_dist.build(copied(source), EPOCH, out, isolated=False)
    return {path.name: path for path in made}


@pytest.fixture(scope="module")
def wheels(distributions: dict[str, Path]) -> dict[str, Path]:
    """The wheels, by the name of what they install."""
    whole = (path for path in distributions.values() if path.suffix == ".whl")
    return {path.name.partition("-")[0]: path for path in whole}


def test_the_same_files_make_the_same_bytes(
    distributions: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also somebody else's, of another time: looked at with the smaller of the two projects."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("other", "again"))
    for path in copied(source).rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            os.utime(path, (1_000_000_000, 1_000_000_000))
    made = make_dist.build(source, EPOCH, out, isolated=False, projects=("fcn_client",))
    for path in made:
        assert path.read_bytes() == distributions[path.name].read_bytes(), path.name
    assert (len(made), len(distributions)) == (2, 4)


def files(wheel: Path) -> set[str]:
    """Lists what a wheel installs, but for its own metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_clients_wheel_holds_the_package_and_nothing_else(wheels: dict[str, Path]) -> None:
    package = ROOT / "fcn_client"
    shipped = {
        str(path.relative_to(ROOT))
        for path in package.rglob("*")
        if path.suffix in (".py", ".pyi", ".typed") and "build" not in path.parts
    }
    assert files(wheels["fcn_client"]) == shipped
    assert {"fcn_client/py.typed", "fcn_client/stubs/segmentation_pb2.pyi"} < shipped


def test_the_servers_wheel_shares_no_file_with_it(wheels: dict[str, Path]) -> None:
    server = files(wheels["fcn_serve"])
    assert {name.partition("/")[0] for name in server} == {"cli", "model", "service", "training"}
    assert "service/api/stubs/inference_pb2.pyi" in server


def test_both_have_the_licence_and_one_version() -> None:
    projects = [
        tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        for folder in (ROOT, ROOT / "fcn_client")
    ]
    server, client = projects
    assert server["version"] == client["version"]
    assert server["license-files"] == client["license-files"]
    extra = server["optional-dependencies"]["client"]
    assert extra == [f"{client['name']}[progress]=={client['version']}"]
    assert (ROOT / "fcn_client" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


@pytest.fixture(scope="module")
def python(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the client's wheel and, of ours, nothing else.

    With protobuf 6, as other packages of a user may want it: all other tests run with 7. pip and
    mypy are ours, told which interpreter they are to look after.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    found = folder / "bin" / "python"
    wanted = [str(wheels["fcn_client"]), "protobuf<7"]
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "--python", str(found), "install", *quiet]
    done = subprocess.run([*pip, *wanted], capture_output=True, text=True)
    need(done.returncode == 0, f"a package index that pip can install from: {done.stderr}")
    return found


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def outside(python: Path, folder: Path, *arguments: str) -> str:
    """Stdout of the interpreter in a folder from which it cannot see this checkout."""
    done = subprocess.run(
        [python, *arguments], cwd=folder, env=clean(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(300)  # the first to ask for the environment waits for the package index
def test_it_imports_alone(python: Path, tmp_path: Path) -> None:
    outside(Path(sys.executable), tmp_path, "-m", "pip", "--python", str(python), "check")
    script = (
        "import fcn_client.sync.rpc, fcn_client.aio.rest, fcn_client.predict, importlib.util\n"
        "import google.protobuf; print(google.protobuf.__version__, fcn_client.__file__)\n"
        "print([n for n in ('proto', 'service', 'fastapi') if importlib.util.find_spec(n)])"
    )
    versions, foreign = outside(python, tmp_path, "-W", "error", "-c", script).splitlines()
    assert versions.startswith("6.")
    assert str(python.parent.parent) in versions
    assert foreign == "[]"


@pytest.mark.timeout(300)
def test_a_users_script_is_typed(python: Path, tmp_path: Path) -> None:
    wrong = USER_SCRIPT.replace("result.value.shape", "result.values.shape")
    (tmp_path / "right.py").write_text(USER_SCRIPT)
    (tmp_path / "wrong.py").write_text(wrong)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python)]
    done = subprocess.run(
        [*mypy, "right.py", "wrong.py"], cwd=tmp_path, env=clean(), capture_output=True, text=True
    )
    (error,) = (line for line in done.stdout.splitlines() if ": error: " in line)
    assert error.startswith("wrong.py:")
    assert 'has no attribute "values"' in error


@pytest.mark.timeout(300)
def test_it_asks_a_server(python: Path, server: Server, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(USER_SCRIPT)
    (tmp_path / "photo.png").write_bytes(png(street()))
    urls = (server.url, f"grpc://{server.target}")
    lines = outside(python, tmp_path, "script.py", "photo.png", *urls).splitlines()
    assert len(lines) == 3
    assert all("(24, 32)" in line for line in lines[:2])
    over_rest, over_grpc = lines[2].split()
    assert over_rest == over_grpc
