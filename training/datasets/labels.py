"""Reads label files that are not plain class ids: other numbers, and MATLAB matrices."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.datasets.base import DatasetError, UInt8Array, read_label_png, unreadable

_UNKNOWN = -1

_HDF5 = b"MATLAB 7.3"
"""How the 128-byte header of a v7.3 file begins. Source: MathWorks, 'MAT-File Versions'."""
_MATRIX, _COMPRESSED = 14, 15
_KINDS = frozenset(range(1, 19)) - {8, 10, 11}
_NUMBERS, _COMPLEX = range(6, 16), 0x800  # classes of matrices, and a flag
_MAX_DEPTH = 16  # structs in structs


class LabelTable:
    """Maps the numbers in a data set's files to class ids."""

    def __init__(self, ids: Mapping[int, int]) -> None:
        """`ids`: raw number (may be negative) to class id or VOID; all others are errors."""
        # One more at either end, where all numbers beyond are sent.
        self._low, self._high = min(ids) - 1, max(ids) + 1
        self._table = np.full(self._high - self._low + 1, _UNKNOWN, np.int16)
        for raw, class_id in ids.items():
            self._table[raw - self._low] = class_id

    def __call__(self, raw: npt.NDArray[Any], path: Path) -> UInt8Array:
        """Map integers [H,W] to uint8 [H,W]. Raises: DatasetError for a number not in the table."""
        found = self._table[np.clip(raw.astype(np.int64), self._low, self._high) - self._low]
        unknown = found == _UNKNOWN
        if unknown.any():
            value = int(raw[unknown][0])
            raise DatasetError(
                f"{path} holds the label {value}, which its format does not have", "class"
            )
        return found.astype(np.uint8)


class PngLabels:
    """Reads greyscale or palette PNGs through a table."""

    def __init__(self, table: LabelTable) -> None:
        self._table = table

    def __call__(self, path: Path) -> UInt8Array:
        return self._table(read_label_png(path), path)


class MatLabels:
    """Reads one matrix of .mat files of MATLAB's v5 format: SBD, SIFT Flow, PASCAL-Context and
    NYUDv2 have it, since everybody reads them with scipy.io, which reads no other.

    `keys`: the variable, then fields of the struct it is, if it is one.
    """

    def __init__(self, table: LabelTable, *keys: str) -> None:
        self._table, self._keys = table, keys

    def __call__(self, path: Path) -> UInt8Array:
        return self._table(read_matrix(path, *self._keys), path)


def read_matrix(path: Path, *keys: str) -> npt.NDArray[Any]:
    """Read integers [H,W]. Raises: DatasetError for a damaged file or one of another structure."""
    # A matrix of one row or column loses that axis in simplify_cells: no image has just one.
    matrix = _read(path, keys)
    if matrix.ndim != 2:
        raise DatasetError(f"{path}: {'.'.join(keys)} is no matrix of labels [H,W]")
    return _whole(matrix, path, keys)


def read_vector(path: Path, *keys: str) -> npt.NDArray[Any]:
    """Read integers [N] of a row or a column. Raises: DatasetError as `read_matrix`."""
    vector = _read(path, keys)
    if vector.ndim > 1:
        raise DatasetError(f"{path}: {'.'.join(keys)} is no row or column of numbers")
    return _whole(np.atleast_1d(vector), path, keys)


def _read(path: Path, keys: Sequence[str]) -> npt.NDArray[Any]:
    """Read one variable, or a field of a struct. Raises: DatasetError."""
    from scipy.io import loadmat  # here: only who has such a data set needs SciPy

    try:
        body = path.read_bytes()
        if body.startswith(_HDF5):
            raise DatasetError(
                f"{path} is a MATLAB v7.3 file; this data set is distributed as v5: get the "
                "original, or save it again with save(..., '-v7')"
            )
        if 0 not in body[:4]:  # as SciPy tells v5 from v4
            _check_elements(body[128:], "<" if body[126:128] == b"IM" else ">")
        value: Any = loadmat(path, variable_names=[keys[0]], simplify_cells=True)
    except DatasetError:
        raise
    except Exception as error:  # SciPy names no set of errors for a damaged file
        raise unreadable("label", path, error) from error
    for depth, key in enumerate(keys):
        if not isinstance(value, dict) or key not in value:
            raise DatasetError(f"{path} holds no {'.'.join(keys[: depth + 1])}")
        value = value[key]
    return np.asarray(value)


def _check_elements(data: bytes, order: str, depth: int = 0) -> list[int]:
    """Refuses a file of element types that are unknown or of another place, at which SciPy crashes.

    order: of bytes. Returns the types. Raises: ValueError, struct.error, zlib.error.
    Source: MAT-File Format, version 5, chapter 1.
    """
    at, kinds = 0, []
    while at < len(data):
        kind, size = struct.unpack_from(order + "II", data, at)
        at += 8
        if kind >> 16:  # a small one: its size, and its content in place of the size
            kind, size, at = kind & 0xFFFF, kind >> 16, at - 4
        content = data[at : at + size]
        if kind not in _KINDS or len(content) < size or depth > _MAX_DEPTH:
            raise ValueError(f"there is no element of type {kind} and {size} bytes in it")
        if kind == _COMPRESSED:
            content = zlib.decompress(content)
        if kind in (_MATRIX, _COMPRESSED):
            parts = _check_elements(content, order, depth + 1)
        if kind == _MATRIX and content:
            (flags,) = struct.unpack_from(order + "I", content, 8)
            # Numbers: flags, shape, name, real parts, and imaginary ones where a flag says so.
            wanted = 4 + bool(flags & _COMPLEX)
            if flags & 0xFF in _NUMBERS and (len(parts) != wanted or max(parts) >= _MATRIX):
                raise ValueError("a matrix in it has not the parts that it should")
        kinds.append(kind)
        at += size if kind == _COMPRESSED else size + -(at + size) % 8
    return kinds


def _whole(matrix: npt.NDArray[Any], path: Path, keys: Sequence[str]) -> npt.NDArray[Any]:
    """Convert to integers. Raises: DatasetError."""
    if matrix.dtype.kind == "f" and (matrix == np.trunc(matrix)).all():
        return matrix.astype(np.int64)  # MATLAB's numbers are doubles unless told otherwise
    if matrix.dtype.kind not in "iu":
        raise DatasetError(f"{path}: {'.'.join(keys)} holds {matrix.dtype}, not whole numbers")
    return matrix
