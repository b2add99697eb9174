"""Choosing what of a network becomes 8-bit: calibration, sensitivity, and what stays in float."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tqdm import tqdm

from model.contract import METADATA_KEY, Contract
from model.quantize import (
    FloatModel,
    Method,
    QuantizeError,
    Quantizer,
    UInt8Array,
    open_float_model,
    simulate,
)
from training.datasets.base import SegmentationDataset, read_image
from training.metrics import Confusion

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}

Images = Sequence[Callable[[], UInt8Array]]
"""Read when called: a data set does not fit into memory."""


@dataclass(frozen=True, slots=True)
class LayerReport:
    """`agreement`: share of labels equal to the fp32 file's if this layer alone is quantised."""

    layer: str
    agreement: float
    quantized: bool


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """`agreement`: of the file that was written, with the fp32 file, over `compared` images."""

    path: str
    method: str
    reduce_range: bool
    calibrated: int
    compared: int
    agreement: float
    agreement_of_all: float
    """with every layer quantised"""
    layers: tuple[LayerReport, ...]
    file_bytes: int
    scores: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> str:
        width = max(len(row.layer) for row in self.layers)
        lines = [f"{'layer':{width}}  agreement  precision"]
        lines += [
            f"{row.layer:{width}}  {row.agreement:9.4%}  {'int8' if row.quantized else 'float'}"
            for row in self.layers
        ]
        lines.append(
            f"{self.path}: {self.file_bytes / 2**20:.1f} MiB; labels agree with fp32 on "
            f"{self.agreement:.3%} of the pixels of {self.compared} images "
            f"({self.agreement_of_all:.3%} with every layer quantised)"
        )
        lines += [f"{name} {100 * score:.2f}" for name, score in self.scores.items()]
        return "\n".join(lines)


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


def quantize_file(
    source: Path,
    target: Path,
    calibration: Images,
    comparison: Images,
    *,
    method: Method,
    min_agreement: float,
    keep_float: Sequence[str] = (),
    winograd: Sequence[str] = (),
    reduce_range: bool = False,
    scored: Sequence[SegmentationDataset] = (),
    overwrite: bool = False,
    progress: bool = True,
) -> QuantizeReport:
    """Write `target`, the int8 form of `source`. `scored`: splits whose scores its contract gets.
    `winograd`: layers computed with fewer multiplications, see `model.winograd`.

    Layers are left in float, the most sensitive first, until the labels agree with the fp32 file's
    on `min_agreement` of the pixels of `comparison`. Everything is judged on `simulate`, which is
    what CPUs with exact 8-bit products compute. Raises: QuantizeError, DatasetError.
    """
    model = open_float_model(source, winograd)
    if target.exists() and not overwrite:
        raise QuantizeError(f"{target} exists: choose another --out or say --overwrite")
    if unknown := sorted(set(keep_float) - set(model.layers)):
        known = ", ".join(model.layers)
        raise QuantizeError(f"there is no layer {unknown[0]!r}: choose from {known}")
    reading = (read() for read in tqdm(calibration, "calibrate", disable=not progress))
    quantizer = Quantizer(model, reading, method)
    wanted = list(_labels(model.proto, model.contract, comparison))

    def make(layers: Sequence[str]) -> tuple[onnx.ModelProto, float]:
        proto = quantizer.quantize(layers, reduce_range=reduce_range)
        got = _labels(proto, model.contract, comparison)
        equal = [float((a == b).mean()) for a, b in zip(wanted, got, strict=True)]
        return proto, float(np.mean(equal))

    alone = {
        layer: make([layer])[1] for layer in tqdm(model.layers, "sensitivity", disable=not progress)
    }
    order = sorted(alone, key=lambda layer: alone[layer])
    chosen = [layer for layer in model.layers if layer not in keep_float]
    proto, agreement = make(chosen)
    of_all = agreement if not keep_float else make(list(model.layers))[1]
    candidates = [layer for layer in order if layer in chosen]
    with tqdm(total=len(candidates), desc="leave in float", disable=not progress) as bar:
        while agreement < min_agreement:
            chosen.remove(candidates.pop(0))
            if not chosen:
                raise QuantizeError(
                    f"no choice of layers agrees with {source} on {min_agreement:.2%} of the "
                    "pixels: lower --min-agreement"
                )
            proto, agreement = make(chosen)
            bar.update()
    scores = _scores(proto, model, scored, progress)
    contract = replace(model.contract, precision="int8", scores=scores)
    onnx.helper.set_model_props(proto, {METADATA_KEY: contract.to_json()})
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        onnx.save_model(proto, str(temporary))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return QuantizeReport(
        str(target), method, reduce_range, len(calibration), len(comparison), agreement, of_all,
        tuple(LayerReport(layer, alone[layer], layer in chosen) for layer in model.layers),
        target.stat().st_size, scores,
    )  # fmt: skip


def _labels(
    proto: onnx.ModelProto, contract: Contract, images: Iterable[Callable[[], UInt8Array]]
) -> Iterator[UInt8Array]:
    session = simulate(proto)
    for read in images:
        feeds = {contract.input.name: read()[None]}
        yield session.run([contract.outputs.label_map], feeds)[0][0]


def _scores(
    proto: onnx.ModelProto,
    model: FloatModel,
    scored: Sequence[SegmentationDataset],
    progress: bool,
) -> dict[str, float]:
    """`<split>_<metric>`, in 0..1, as `fcn export` names them."""
    scores: dict[str, float] = {}
    for data in scored:
        confusion = Confusion(data.num_classes)
        bar = tqdm(dataset_images(data), data.split, unit="image", disable=not progress)
        for index, labels in enumerate(_labels(proto, model.contract, bar)):
            confusion.add(data.target(index), labels)
        measured = confusion.scores()
        for metric in ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu"):
            scores[f"{data.split}_{metric}"] = round(getattr(measured, metric), 6)
    return scores


def _reader(path: Path) -> Callable[[], UInt8Array]:
    return lambda: read_image(path)
