"""Writes the Python stubs of the .proto files into the packages that use them: `make proto`.

Each package has stubs of its own, so that each can be installed without the other. They describe
the same files under the same names, which protobuf allows in one process.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEGMENTATION = "segmentation/v1/segmentation.proto"
INFERENCE = "inference/inference.proto"
# The client has no stubs of the Open Inference Protocol: tritonclient registers messages of the
# same names, and a program may want both.
TARGETS = {
    "fcn_client/stubs": (SEGMENTATION,),
    "service/api/stubs": (SEGMENTATION, INFERENCE),
}
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")

# Stubs run on the major version of protobuf that they were generated for and on the next, and on
# none before. This is the oldest release that generates for protobuf 6, so these run on 6.30 and
# later and on 7, and leave the choice to what else is installed. Newer releases generate for 7.
# Source: https://protobuf.dev/support/cross-version-runtime-guarantee
GENERATOR = "grpcio-tools==1.72.2"


def sources() -> list[Path]:
    """Lists every .proto file of the project."""
    return sorted((ROOT / "proto").rglob("*.proto"))


def stubs() -> dict[Path, Path]:
    """Maps the path of every stub to that of its .proto file."""
    return {
        ROOT / folder / (Path(source).stem + suffix): ROOT / "proto" / source
        for folder, files in TARGETS.items()
        for source in files
        for suffix in SUFFIXES
    }


def stale() -> list[Path]:
    """Lists the committed stubs that are missing or were not made from today's .proto file."""
    return [
        stub
        for stub, source in stubs().items()
        if not stub.is_file() or stub.read_text().partition("\n")[0] != header(source)
    ]


def header(source: Path) -> str:
    """Returns the first line of every stub made from `source`."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    return f"# By `make proto` with {GENERATOR} from {source.name}, sha256 {digest[:32]}."


def generate() -> None:
    """Writes all stubs. Raises: CalledProcessError when pip or protoc fails, after its message."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        venv.create(folder / "venv", with_pip=True)
        python = str(folder / "venv" / "bin" / "python")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # It imports pkg_resources, which newer setuptools lack.
        subprocess.run([*pip, GENERATOR, "setuptools<81"], check=True)
        protoc = [python, "-m", "grpc_tools.protoc", f"--proto_path={ROOT / 'proto'}"]
        kinds = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
        subprocess.run([*protoc, *kinds, SEGMENTATION, INFERENCE], check=True)
        for stub, source in stubs().items():
            stub.parent.mkdir(parents=True, exist_ok=True)
            (stub.parent / "__init__.py").touch()
            made = folder / source.relative_to(ROOT / "proto").parent / stub.name
            if made.is_file():
                text = _movable(made.read_text())
            else:
                text = _grpc_types(made.with_suffix(".py").read_text())
            if stub.name.endswith("_pb2.pyi"):
                # protoc writes bare `Mapping`, which mypy --strict refuses.
                text = f'# mypy: disable-error-code="type-arg"\n{text}'
            stub.write_text(f"{header(source)}\n{text}")


def _movable(text: str) -> str:
    """Makes a generated module work in any package: protoc names only the .proto file's folders."""
    text = re.sub(r"^from [\w.]+ import (\w+_pb2 as)", r"from . import \1", text, flags=re.M)
    return re.sub(r"(DescriptorsAndMessages\(DESCRIPTOR, )'[\w.]+'", r"\1__name__", text)


def _grpc_types(module: str) -> str:
    """Returns the types of a *_pb2_grpc.py, of which protoc writes none."""
    lines = ["from typing import Any"]
    for part in re.split(r"^class (?=\w+Stub\b)", module, flags=re.M)[1:]:
        service = part.partition("Stub")[0]
        methods = re.findall(r"^ {8}self\.(\w+) = ", part, re.M)
        lines += [
            "",
            f"class {service}Stub:",
            "    def __init__(self, channel: Any) -> None: ...",
            *(f"    {method}: Any" for method in methods),
            "",
            f"def add_{service}Servicer_to_server(servicer: Any, server: Any) -> None: ...",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    generate()
    sys.stdout.write("".join(f"{stub.relative_to(ROOT)}\n" for stub in stubs()))
