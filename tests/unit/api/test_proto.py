"""The stubs are what the .proto files say, and the client's and the server's agree."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

from fcn_client.stubs import segmentation_pb2 as client_pb
from proto import generate
from service.api.grpc.segmentation import OUTPUTS
from service.api.stubs import inference_pb2, segmentation_pb2
from service.core.segmenter import Output

MODULES = {
    generate.SEGMENTATION: (client_pb, segmentation_pb2),
    generate.INFERENCE: (inference_pb2,),
}


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


@pytest.mark.parametrize("source", MODULES)
def test_stubs_describe_their_source(source: str, tmp_path: Path) -> None:
    """Compares with today's protoc, so that a stub that was edited by hand is noticed."""
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={generate.ROOT / 'proto'}"]
    subprocess.run([*protoc, f"--descriptor_set_out={tmp_path / 'set'}", source], check=True)
    (expected,) = FileDescriptorSet.FromString((tmp_path / "set").read_bytes()).file
    drop_json_names(expected.message_type)
    for module in MODULES[source]:
        assert FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb) == expected


def drop_json_names(messages: Iterable[DescriptorProto]) -> None:
    """Removes what protoc adds to a descriptor set and not to a stub."""
    for message in messages:
        drop_json_names(message.nested_type)
        for field in message.field:
            field.ClearField("json_name")


def test_every_source_is_generated() -> None:
    assert {str(p.relative_to(generate.ROOT / "proto")) for p in generate.sources()} == set(MODULES)


@pytest.mark.parametrize("suffix", generate.SUFFIXES)
def test_client_and_server_have_the_same_stubs(suffix: str) -> None:
    client, server = (
        (generate.ROOT / folder / f"segmentation{suffix}").read_text()
        for folder in generate.TARGETS
    )
    assert client == server


@pytest.mark.parametrize("implementation", ["upb", "python"])
def test_both_load_in_one_process(implementation: str) -> None:
    """In both orders, with either implementation of protobuf, and messages can be handed over."""
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
    assert set(OUTPUTS) == set(segmentation_pb2.Output.values())
    assert set(OUTPUTS.values()) == set(Output)
