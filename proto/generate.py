"""Generate the Python stubs beside each .proto file: `python -m proto.generate`.

`--check` writes nothing and fails when a committed stub differs from a fresh one. Needs the `dev`
extra (grpcio-tools); serving does not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def sources() -> list[Path]:
    """Every .proto file of the project, relative to its root."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / "proto").rglob("*.proto"))


def generate(target: Path) -> list[Path]:
    """Write the stubs below `target`; returns their paths relative to it.

    Sources are named from the project's root, so that the stubs import each other as
    `proto.<package>`. Raises: RuntimeError when protoc reports an error (it prints which).
    """
    from grpc_tools import protoc  # type: ignore[import-untyped]  # the dev extra only

    stubs = []
    descriptors = target / "descriptors.pb"
    for source in sources():
        command = [
            "protoc",
            f"--proto_path={ROOT}",
            f"--python_out={target}",
            f"--pyi_out={target}",
            f"--grpc_python_out={target}",
            f"--descriptor_set_out={descriptors}",
            str(source),
        ]
        if protoc.main(command) != 0:
            raise RuntimeError(f"protoc refused {source}")
        written = FileDescriptorSet.FromString(descriptors.read_bytes())
        descriptors.unlink()
        base = target / source.with_suffix("")
        (base.parent / f"{base.name}_pb2_grpc.pyi").write_text(_grpc_types(written))
        types = base.parent / f"{base.name}_pb2.pyi"
        # protoc writes bare `Mapping`, which mypy --strict refuses.
        types.write_text('# mypy: disable-error-code="type-arg"\n' + types.read_text())
        stubs += [source.with_name(source.stem + suffix) for suffix in SUFFIXES]
    return stubs


def _grpc_types(descriptors: FileDescriptorSet) -> str:
    """Types for a *_pb2_grpc.py, of which protoc writes none."""
    lines = ["from typing import Any", ""]
    for service in (s for file in descriptors.file for s in file.service):
        lines += [f"class {service.name}Stub:", "    def __init__(self, channel: Any) -> None: ..."]
        lines += [f"    {method.name}: Any" for method in service.method]
        lines += [
            "",
            f"def add_{service.name}Servicer_to_server(servicer: Any, server: Any) -> None: ...",
        ]
    return "\n".join(lines) + "\n"


def stale() -> list[Path]:
    """Committed stubs that are missing or differ from what their .proto generates now."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        return [
            stub
            for stub in generate(fresh)
            if not (ROOT / stub).is_file()
            or (ROOT / stub).read_bytes() != (fresh / stub).read_bytes()
        ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="proto.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only report stale stubs")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    for stub in (old := stale()):
        sys.stderr.write(f"{stub} is out of date: run `make proto` and commit it\n")
    return 1 if old else 0


if __name__ == "__main__":
    raise SystemExit(main())
