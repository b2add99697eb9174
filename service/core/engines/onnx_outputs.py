"""Takes an output off an ONNX file, so that no run computes what few ask for."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError


def without_output(path: Path, name: str) -> bytes:
    """Reads an ONNX file and leaves out the output `name`, with the nodes that nothing else needs:
    the runtime would run them.

    What the graphs inside a node (of If and Loop) use is not seen. Raises: OSError, and ValueError
    if it is no ONNX file.
    """
    try:
        model = _model().FromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{path} is no ONNX file: {error}") from error
    graph = model.graph
    outputs = [output for output in graph.output if output.name != name]
    wanted = {output.name for output in outputs}
    nodes = []
    for node in reversed(graph.node):  # which stand in the order in which they can run
        if wanted.intersection(node.output):
            wanted.update(node.input)
            nodes.append(node)
    for field, kept in ((graph.output, outputs), (graph.node, nodes[::-1])):
        whole = [each.SerializeToString() for each in kept]
        del field[:]
        for each in whole:
            field.add().MergeFromString(each)
    body: bytes = model.SerializeToString()
    return body


@cache
def _model() -> Any:
    """Makes the class of the file's message, as far as it matters here: protobuf keeps what it does
    not know. In a pool of its own, where the package `onnx` may describe the whole.

    Source: onnx/onnx.proto of github.com/onnx/onnx (ModelProto, GraphProto, NodeProto and
    ValueInfoProto).
    """
    file = descriptor_pb2.FileDescriptorProto(name="outputs.proto", syntax="proto2")
    kinds = descriptor_pb2.FieldDescriptorProto
    for message, field, number, kind in (
        ("Model", "graph", 7, "Graph"),
        ("Graph", "node", 1, "Node"),
        ("Graph", "output", 12, "Value"),
        ("Node", "input", 1, None),
        ("Node", "output", 2, None),
        ("Value", "name", 1, None),
    ):
        if message not in {each.name for each in file.message_type}:
            file.message_type.add(name=message)
        (described,) = (each for each in file.message_type if each.name == message)
        added = described.field.add(name=field, number=number)
        single = field in ("graph", "name")
        added.label = kinds.LABEL_OPTIONAL if single else kinds.LABEL_REPEATED
        added.type = kinds.TYPE_MESSAGE if kind else kinds.TYPE_STRING
        if kind:
            added.type_name = f".{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Model"))
