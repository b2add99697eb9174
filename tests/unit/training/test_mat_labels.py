"""MATLAB label files and tables of label numbers: what is read, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from tests.unit.training import miniatures
from training.datasets import DatasetError
from training.datasets.base import VOID
from training.datasets.labels import LabelTable, MatLabels, read_matrix

MATRIX = np.arange(6, dtype=np.uint8).reshape(2, 3)
HERE = Path("a.mat")


def test_table() -> None:
    table = LabelTable({-1: VOID, 0: VOID, 1: 0, 3: 1})
    raw = np.array([[-1, 0], [1, 3]], np.int16)
    assert (table(raw, HERE) == [[VOID, VOID], [0, 1]]).all()
    assert table(raw, HERE).dtype == np.uint8


@pytest.mark.parametrize("value", [-2, 2, 4, 70000, -(2**40)])
def test_number_not_in_the_table(value: int) -> None:
    table = LabelTable({-1: VOID, 0: VOID, 1: 0, 3: 1})
    with pytest.raises(DatasetError, match=rf"a\.mat holds the label {value}, which"):
        table(np.array([[1, value]]), HERE)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float64])
def test_matrix_of_any_whole_numbers(tmp_path: Path, dtype: Any) -> None:
    miniatures.save_mat(tmp_path / "a.mat", S=MATRIX.astype(dtype), other=1)
    matrix = read_matrix(tmp_path / "a.mat", "S")
    assert (matrix == MATRIX).all()
    assert matrix.dtype.kind in "iu"


def test_field_of_a_struct(tmp_path: Path) -> None:
    miniatures.save_mat(tmp_path / "a.mat", GTcls={"Segmentation": MATRIX})
    assert (read_matrix(tmp_path / "a.mat", "GTcls", "Segmentation") == MATRIX).all()


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"T": MATRIX}, r"a\.mat holds no S$"),
        ({"S": MATRIX}, r"a\.mat holds no S\.field"),
        ({"S": {"other": MATRIX}}, r"a\.mat holds no S\.field"),
        ({"S": {"field": np.zeros((2, 2, 2))}}, r"S\.field is no matrix"),
        ({"S": {"field": "text"}}, r"S\.field is no matrix"),
        ({"S": {"field": MATRIX + 0.5}}, r"S\.field holds float64, not whole numbers"),
        ({"S": {"field": np.full((2, 2), np.nan)}}, r"holds float64, not whole numbers"),
        ({"S": {"field": MATRIX * 1j}}, r"holds complex128, not whole numbers"),
    ],
)
def test_other_structures(tmp_path: Path, variables: dict[str, Any], complaint: str) -> None:
    miniatures.save_mat(tmp_path / "a.mat", **variables)
    with pytest.raises(DatasetError, match=complaint):
        read_matrix(tmp_path / "a.mat", "S", "field")


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut", "flipped"])
def test_damaged_files(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.mat"
    miniatures.save_mat(path, S=np.random.default_rng(0).integers(0, 9, (40, 40)))
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[150:160] = b"\xff" * 10
    if damage == "missing":
        path.unlink()
    else:
        parts = {"empty": b"", "text": b"hello", "cut": content[:-30], "flipped": bytes(flipped)}
        path.write_bytes(parts[damage])
    with pytest.raises(DatasetError, match=r"cannot read the label .*a\.mat: ."):
        read_matrix(path, "S")


def test_hdf5_is_named(tmp_path: Path) -> None:
    """MATLAB's -v7.3 writes such a beginning; the supported data sets hold none."""
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Jan  1 00:00:00 2024"
    (tmp_path / "a.mat").write_bytes(header.ljust(512) + b"\x89HDF\r\n\x1a\n" + bytes(64))
    with pytest.raises(DatasetError, match=r"a\.mat is a MATLAB v7\.3 file"):
        read_matrix(tmp_path / "a.mat", "S")


def test_without_scipy_the_missing_module_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fcn` turns its name into the extra that brings it; it must not read as a damaged file."""
    miniatures.save_mat(tmp_path / "a.mat", S=MATRIX)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ModuleNotFoundError):
        MatLabels(LabelTable({0: 0}), "S")(tmp_path / "a.mat")


@pytest.mark.parametrize("kind", [0, 8, 19, 0x5C])
def test_elements_of_unknown_types_are_refused(kind: int, tmp_path: Path) -> None:
    """SciPy reads beyond a table for them, and ends the process at some."""
    path = tmp_path / "a.mat"
    matrix = np.arange(12, dtype=np.uint8)
    scipy.io.savemat(path, {"S": matrix}, do_compression=False)
    body = path.read_bytes()
    at = body.index(matrix.tobytes()) - 8
    path.write_bytes(body[:at] + bytes([kind]) + body[at + 1 :])
    with pytest.raises(DatasetError, match=r"a\.mat"):
        read_matrix(path, "S")


def test_a_matrix_without_its_imaginary_part_is_refused(tmp_path: Path) -> None:
    """SciPy takes the next variable for it, and ends the process."""
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"S": np.arange(12, dtype=np.uint8), "T": {"a": 1.5}})
    body = bytearray(path.read_bytes())
    body[128 + 17] |= 0x08  # the flags of the first matrix
    path.write_bytes(body)
    with pytest.raises(DatasetError, match=r"a\.mat"):
        read_matrix(path, "S")
