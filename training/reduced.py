"""What making an int8 and an fp16 file have in common: pictures, labels, scores, the file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tqdm import tqdm

from model.contract import METADATA_KEY, Contract
from model.float_model import QuantizeError
from model.quantize import UInt8Array
from training.datasets.base import SegmentationDataset, read_image
from training.evaluation.metrics import Confusion

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}

Images = Sequence[Callable[[], UInt8Array]]
"""Read when called: a data set does not fit into memory."""


def folder_images(folder: Path) -> Images:
    """Every picture in `folder`, by name. Raises: QuantizeError if there is none."""
    if not folder.is_dir():
        raise QuantizeError(f"there is no folder {folder}")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES)
    if not paths:
        raise QuantizeError(f"{folder} holds no image ({', '.join(sorted(_SUFFIXES))})")
    return [_reader(path) for path in paths]


def dataset_images(data: SegmentationDataset) -> Images:
    return [_reader(image) for image, _label in data.pairs]


def spread(images: Images, count: int) -> Images:
    """`count` of them, evenly spaced."""
    places = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)
    return [images[place] for place in places]


def labels_of(
    session: Any, contract: Contract, images: Iterable[Callable[[], UInt8Array]]
) -> Iterator[UInt8Array]:
    for read in images:
        feeds = contract.feeds(read()[None])
        yield session.run([contract.outputs.label_map], feeds)[0][0]


def agreement_of(wanted: Iterable[UInt8Array], got: Iterable[UInt8Array]) -> float:
    """Share of equal labels, the mean over images."""
    return float(np.mean([(a == b).mean() for a, b in zip(wanted, got, strict=True)]))


def outcome(
    path: str, file_bytes: int, agreement: float, compared: int, scores: dict[str, float]
) -> list[str]:
    """The last lines of a report: the file's size, its agreement with the fp32 file, its scores."""
    return [
        f"{path}: {file_bytes / 2**20:.1f} MiB; labels agree with fp32 on {agreement:.3%} of the "
        f"pixels of {compared} images",
        *(f"{name} {100 * score:.2f}" for name, score in scores.items()),
    ]


def scores_of(
    session: Any, contract: Contract, scored: Sequence[SegmentationDataset], progress: bool
) -> dict[str, float]:
    """`<split>_<metric>`, in 0..1, as `fcn export` names them."""
    scores: dict[str, float] = {}
    for data in scored:
        confusion = Confusion(data.num_classes)
        bar = tqdm(dataset_images(data), data.split, unit="image", disable=not progress)
        for index, labels in enumerate(labels_of(session, contract, bar)):
            confusion.add(data.target(index), labels)
        measured = confusion.scores()
        for metric in ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu"):
            scores[f"{data.split}_{metric}"] = round(getattr(measured, metric), 6)
    return scores


def check_target(target: Path, overwrite: bool) -> None:
    """Raises: QuantizeError."""
    if target.exists() and not overwrite:
        raise QuantizeError(f"{target} exists: choose another --out or say --overwrite")


def save(
    proto: onnx.ModelProto,
    contract: Contract,
    precision: str,
    scores: dict[str, float],
    target: Path,
) -> None:
    """With the contract of the fp32 file but for these two; renamed into place when complete."""
    contract = replace(contract, precision=precision, scores=scores)
    onnx.helper.set_model_props(proto, {METADATA_KEY: contract.to_json()})
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        onnx.save_model(proto, str(temporary))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _reader(path: Path) -> Callable[[], UInt8Array]:
    return lambda: read_image(path)
