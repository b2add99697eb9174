"""Reading, running and writing ONNX files: one place for export, adoption and conversion."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from model.contract import METADATA_KEY, Contract, ContractError

UInt8Array = npt.NDArray[np.uint8]


class NotExported(ValueError):
    """There is no such file, or it is not an ONNX model with a contract; the message says which."""


def read_exported(path: Path) -> tuple[onnx.ModelProto, Contract]:
    """Raises: NotExported."""
    if not path.is_file():
        raise NotExported(f"there is no file {path}")
    try:
        proto = onnx.load(str(path))
        onnx.checker.check_model(proto)
    except Exception as error:  # protobuf's and the checker's share no base class
        raise NotExported(f"{path} cannot be read as an ONNX model: {error}") from error
    try:
        contract = Contract.from_metadata(metadata(proto), str(path))
    except ContractError as error:
        raise NotExported(str(error)) from error
    return proto, contract


def metadata(proto: onnx.ModelProto) -> dict[str, str]:
    return {item.key: item.value for item in proto.metadata_props}


def session(
    model: Path | onnx.ModelProto, *, threads: int = 0, optimized: bool = True, extra: Any = ()
) -> Any:
    """Opens an ONNX Runtime session on the CPU, silent about what it raises anyway.

    `extra`: names of inner tensors that become outputs, of a copy of `model`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if isinstance(model, Path):
        source: str | bytes = str(model)
    else:
        source = with_outputs(model, extra).SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def with_outputs(proto: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Copies a model so that its outputs include these tensors."""
    wider = copied(proto)
    there = {value.name for value in wider.graph.output}
    wider.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in names if name not in there
    )
    return wider


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Gives a hidden name in the nearest folder of `path` that exists, and renames it at the end.

    The folders between are made only then: nothing wrong, and no empty version folder, is ever
    seen in a model repository.
    """
    folder = next(folder for folder in path.absolute().parents if folder.is_dir())
    temporary = folder / f".{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(
    proto: onnx.ModelProto, contract: Contract, path: Path, more: Mapping[str, str] | None = None
) -> None:
    """Saves a file with the contract, and `more` beside it, in its metadata."""
    helper.set_model_props(proto, {METADATA_KEY: contract.to_json(), **(more or {})})
    onnx.save_model(proto, str(path))


def copied(proto: onnx.ModelProto) -> onnx.ModelProto:
    fresh = onnx.ModelProto()
    fresh.CopyFrom(proto)
    return fresh


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def random_images(random: np.random.Generator, count: int, height: int, width: int) -> UInt8Array:
    """Draws uint8 [N,H,W,3]: patches with some grain, for noise would make all features alike."""
    coarse = random.integers(0, 256, (count, height // 8 + 2, width // 8 + 2, 3), np.uint8)
    large = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    grain = random.integers(0, 32, large.shape, np.uint8)
    return np.ascontiguousarray(large // 8 * 7 + grain)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
