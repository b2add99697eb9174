"""The stubs are what the .proto files say, and the client's and the server's agree."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fcn_client.stubs import segmentation_pb2 as client_pb
from proto import generate
from service.api.grpc.segmentation import BY_NUMBER
from service.api.stubs import inference_pb2, segmentation_pb2
from service.core.outputs.registry import all_outputs
from tests.conftest import need


def test_stubs_are_fresh() -> None:
    assert generate.stale() == [], "run `make proto`"


def test_drift_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("proto", *generate.TARGETS):
        shutil.copytree(generate.ROOT / folder, tmp_path / folder)
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    assert generate.stale() == []
    source = tmp_path / "proto" / generate.INFERENCE
    source.write_text(source.read_text().replace("string id = 3;", "string key = 3;"))
    (tmp_path / "fcn_client/stubs/segmentation_pb2.pyi").unlink()
    assert {str(path.relative_to(tmp_path)) for path in generate.stale()} == {
        "fcn_client/stubs/segmentation_pb2.pyi",
        *(f"service/api/stubs/inference{suffix}" for suffix in generate.SUFFIXES),
    }


def test_stubs_are_what_the_generator_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte, so that a stub that was edited by hand is noticed."""
    shutil.copytree(generate.ROOT / "proto", tmp_path / "proto")
    committed = {stub.relative_to(generate.ROOT): stub.read_text() for stub in generate.stubs()}
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    try:
        generate.generate()
    except subprocess.CalledProcessError as error:
        need("pip" not in error.cmd, f"a package index that has {generate.GENERATOR}")
        raise
    assert {s.relative_to(tmp_path): s.read_text() for s in generate.stubs()} == committed


def test_every_source_is_generated() -> None:
    assert set(generate.sources()) == set(generate.stubs().values())


@pytest.mark.parametrize("suffix", generate.SUFFIXES)
def test_client_and_server_have_the_same_stubs(suffix: str) -> None:
    client, server = (
        (generate.ROOT / folder / f"segmentation{suffix}").read_text()
        for folder in generate.TARGETS
    )
    assert client == server


@pytest.mark.parametrize("implementation", ["upb", "python"])
def test_both_load_in_one_process(implementation: str) -> None:
    """They do in both orders, with either implementation of protobuf, and hand messages over."""
    script = (
        "from {0} import segmentation_pb2 as a; from {1} import segmentation_pb2 as b;"
        "sent = a.SegmentRequest(image=b'x', classes=['road'], output=a.OUTPUT_JSON);"
        "read = b.SegmentRequest.FromString(sent.SerializeToString());"
        "assert list(read.classes) == ['road'] and read.output == b.OUTPUT_JSON;"
        "assert a.DESCRIPTOR is b.DESCRIPTOR or a.DESCRIPTOR.name == b.DESCRIPTOR.name;"
        "import google.protobuf.internal.api_implementation as i; assert i.Type() == {2!r}"
    )
    packages = ("fcn_client.stubs", "service.api.stubs")
    for first, second in (packages, packages[::-1]):
        subprocess.run(
            [sys.executable, "-W", "error", "-c", script.format(first, second, implementation)],
            cwd=generate.ROOT,
            env={"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation},
            check=True,
        )


@pytest.mark.parametrize("module", [client_pb, segmentation_pb2, inference_pb2])
def test_stubs_run_on_protobuf_6(module: ModuleType) -> None:
    """Stubs run on their own major version and on the next, see proto/generate.py."""
    text = Path(str(module.__file__)).read_text()
    assert re.search(r"^# Protobuf Python Version: 6\.30\.0$", text, re.M)


def test_every_field_is_documented() -> None:
    for source in generate.sources():
        lines = source.read_text().splitlines()
        for before, line in zip(lines, lines[1:], strict=False):
            if re.match(r"\s+(rpc |[\w. ]+ = \d+;)", line):
                assert before.strip().startswith("//"), f"{source}: {line.strip()}"


def test_every_output_can_be_asked_for() -> None:
    assert set(BY_NUMBER) == set(segmentation_pb2.Output.values())
    assert set(BY_NUMBER.values()) == set(all_outputs())
