"""Generate the Python stubs beside each .proto file: `python -m proto.generate`.

`--check` writes nothing and fails when a committed stub differs from a fresh one. Needs the `dev`
extra (grpcio-tools); serving does not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


def sources() -> list[Path]:
    """Every .proto file of the project, relative to its root."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / "proto").rglob("*.proto"))


def generate(target: Path) -> list[Path]:
    """Write the stubs below `target`; returns their paths relative to it.

    Sources are named from the project's root, so that the stubs import each other as
    `proto.<package>`. Raises: RuntimeError when protoc reports an error (it prints which).
    """
    from grpc_tools import protoc

    stubs = []
    for source in sources():
        command = [
            "protoc",
            f"--proto_path={ROOT}",
            f"--python_out={target}",
            f"--pyi_out={target}",
            f"--grpc_python_out={target}",
            str(source),
        ]
        if protoc.main(command) != 0:
            raise RuntimeError(f"protoc refused {source}")
        stubs += [source.with_name(source.stem + suffix) for suffix in SUFFIXES]
    return stubs


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
