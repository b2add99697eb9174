"""Reading an ONNX file that has a contract."""

from __future__ import annotations

from pathlib import Path

import onnx

from model.contract import Contract, ContractError


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
        contract = Contract.from_metadata({p.key: p.value for p in proto.metadata_props}, str(path))
    except ContractError as error:
        raise NotExported(str(error)) from error
    return proto, contract
