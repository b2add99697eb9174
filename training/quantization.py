"""Files of lower precision: what becomes 8-bit or fp16, how near its labels come, and the file.

Both kinds look at images first, compare labels with the fp32 file's, and measure scores if asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tqdm import tqdm

from model.contract import Contract
from model.export.fp16 import HEADROOM, LARGEST, Fp16Converter
from model.export.fp32_model import QuantizeError, load_fp32, simulate
from model.export.onnx_file import UInt8Array, save, written_beside
from model.export.quantize import Method, Quantizer
from training.datasets import SegmentationDataset, guess_dataset, open_dataset
from training.datasets.base import read_image
from training.datasets.files import IMAGE_ENDINGS, list_files
from training.evaluation.metrics import Confusion

Images = Sequence[Callable[[], UInt8Array]]
"""Read when called: a data set does not fit into memory."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Holds images to choose ranges from, images to compare labels on, and splits to score."""

    ranges: Images
    comparison: Images
    scored: Sequence[SegmentationDataset] = ()

    @classmethod
    def from_folder(cls, folder: Path, count: int, compare: int) -> Calibration:
        """Space both kinds evenly over the folder. Raises: QuantizeError if it has no image."""
        if not folder.is_dir():
            raise QuantizeError(f"there is no folder {folder}")
        paths = list_files(folder, IMAGE_ENDINGS)
        if not paths:
            raise QuantizeError(f"{folder} holds no image ({', '.join(sorted(IMAGE_ENDINGS))})")
        images = [_reader(path) for path in paths]
        return cls(_spread(images, count), _spread(images[::-1], compare))

    @classmethod
    def from_dataset(
        cls, name: str | None, root: Path, count: int, compare: int, scored: Sequence[str] = ()
    ) -> Calibration:
        """Take ranges from its split train, compare on val. Raises: DatasetError."""
        name = name or guess_dataset(root)
        train, val = (open_dataset(name, root, split) for split in ("train", "val"))
        return cls(
            _spread(_images(train), count),
            _spread(_images(val), compare),
            [open_dataset(name, root, split) for split in scored],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionReport:
    """Reports on a file of lower precision.

    `agreement`: share of its labels equal to the fp32 file's over `compared` images, in which that
    one finds `classes` classes: one tells little.
    """

    path: str
    calibrated: int
    compared: int
    agreement: float
    classes: int
    file_bytes: int
    scores: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def outcome(self) -> list[str]:
        """Give the last lines of the table: the file's size, its agreement and its scores."""
        return [
            f"{self.path}: {self.file_bytes / 2**20:.1f} MiB; labels agree with fp32 on "
            f"{self.agreement:.3%} of the pixels of {self.compared} images",
            *(["warning: these are all of one class, which proves little"] * (self.classes == 1)),
            *(f"{name} {100 * score:.2f}" for name, score in self.scores.items()),
        ]


@dataclass(frozen=True, slots=True)
class LayerReport:
    """Holds a layer's `agreement`: the share of equal labels if it alone is quantised."""

    layer: str
    agreement: float
    quantized: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeReport(ConversionReport):
    """Reports on an int8 file. `agreement_of_all`: with every layer quantised."""

    method: str
    reduce_range: bool
    agreement_of_all: float
    layers: tuple[LayerReport, ...]

    def table(self) -> str:
        width = max(len(row.layer) for row in self.layers)
        lines = [f"{'layer':{width}}  agreement  precision"]
        lines += [
            f"{row.layer:{width}}  {row.agreement:9.4%}  {'int8' if row.quantized else 'float'}"
            for row in self.layers
        ]
        lines.append(f"with every layer quantised, labels agree on {self.agreement_of_all:.3%}")
        return "\n".join([*lines, *self.outcome()])


@dataclass(frozen=True, slots=True)
class LayerRange:
    """Holds the `largest` absolute value that a layer's convolution gave on the images."""

    layer: str
    largest: float
    half: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp16Report(ConversionReport):
    """Reports on an fp16 file, compared with every fp16 number rounded as a GPU rounds it."""

    headroom: float
    layers: tuple[LayerRange, ...]

    def table(self) -> str:
        width = max(len(row.layer) for row in self.layers)
        lines = [f"{'layer':{width}}  largest value  of {LARGEST:.0f}  precision"]
        lines += [
            f"{row.layer:{width}}  {row.largest:13.1f}  {row.largest / LARGEST:8.2%}  "
            f"{'fp16' if row.half else 'fp32'}"
            for row in self.layers
        ]
        return "\n".join([*lines, *self.outcome()])


def quantize_file(
    source: Path,
    target: Path,
    calibration: Calibration,
    *,
    method: Method = "minmax",
    min_agreement: float = 0.98,
    keep_float: Sequence[str] = (),
    reduce_range: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> QuantizeReport:
    """Write `target`, the int8 form of `source`.

    Layers are left in float, the most sensitive first, until the labels agree with the fp32 file's
    on `min_agreement` of the pixels compared. Everything is judged on `simulate`, which is what
    CPUs with exact 8-bit products compute. Raises: QuantizeError, DatasetError.
    """
    model = load_fp32(source)
    _check_target(target, overwrite)
    if unknown := sorted(set(keep_float) - set(model.layers)):
        known = ", ".join(model.layers)
        raise QuantizeError(f"there is no layer {unknown[0]!r}: choose from {known}")
    reading = (read() for read in tqdm(calibration.ranges, "calibrate", disable=not progress))
    quantizer = Quantizer(model, reading, method)
    images = calibration.comparison
    wanted = list(_labels(simulate(model.proto), model.contract, images))

    def make(layers: Sequence[str]) -> tuple[onnx.ModelProto, float]:
        proto = quantizer.quantize(layers, reduce_range=reduce_range)
        return proto, _agreement(wanted, _labels(simulate(proto), model.contract, images))

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
    scores = _scores(simulate(proto), model.contract, calibration.scored, progress)
    _write(proto, replace(model.contract, precision="int8", scores=scores), target)
    return QuantizeReport(
        path=str(target), method=method, reduce_range=reduce_range,
        calibrated=len(calibration.ranges), compared=len(images), agreement=agreement,
        agreement_of_all=of_all, classes=_classes(wanted),
        layers=tuple(LayerReport(layer, alone[layer], layer in chosen) for layer in model.layers),
        file_bytes=target.stat().st_size, scores=scores,
    )  # fmt: skip


def convert_file_to_fp16(
    source: Path,
    target: Path,
    calibration: Calibration,
    *,
    min_agreement: float = 0.99,
    headroom: float = HEADROOM,
    keep_float: Sequence[str] = (),
    overwrite: bool = False,
    progress: bool = True,
) -> Fp16Report:
    """Write `target`, the fp16 form of `source`.

    A layer that gave values above the end of fp16 over `headroom` stays in fp32, and so do those of
    `keep_float`. Raises: QuantizeError, also if the labels agree with the fp32 file's on less than
    `min_agreement` of the pixels compared; DatasetError.
    """
    model = load_fp32(source)
    _check_target(target, overwrite)
    reading = (read() for read in tqdm(calibration.ranges, "look at values", disable=not progress))
    converter = Fp16Converter(model, reading, headroom)
    proto = converter.convert(keep_float)
    session = simulate(converter.simulated(keep_float), optimized=True)
    images = calibration.comparison
    wanted = list(_labels(simulate(model.proto, optimized=True), model.contract, images))
    agreement = _agreement(wanted, _labels(session, model.contract, images))
    if agreement < min_agreement:
        raise QuantizeError(
            f"in fp16 {source} gives {agreement:.3%} of the pixels the fp32 file's label, fewer "
            f"than {min_agreement:.3%}: lower --min-agreement, or name layers with --keep-float"
        )
    scores = _scores(session, model.contract, calibration.scored, progress)
    _write(proto, replace(model.contract, precision="fp16", scores=scores), target)
    half = converter.fp16_layers(keep_float)
    rows = (LayerRange(layer, converter.largest(layer), layer in half) for layer in model.layers)
    return Fp16Report(
        path=str(target), calibrated=len(calibration.ranges), compared=len(images),
        headroom=headroom, agreement=agreement, classes=_classes(wanted), layers=tuple(rows),
        file_bytes=target.stat().st_size, scores=scores,
    )  # fmt: skip


def _images(data: SegmentationDataset) -> Images:
    return [_reader(image) for image, _label in data.pairs]


def _reader(path: Path) -> Callable[[], UInt8Array]:
    return lambda: read_image(path)


def _spread(images: Images, count: int) -> Images:
    """Pick `count` of them, evenly spaced."""
    places = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)
    return [images[place] for place in places]


def _labels(
    session: Any, contract: Contract, images: Iterable[Callable[[], UInt8Array]]
) -> Iterator[UInt8Array]:
    for read in images:
        feeds = contract.feeds(read()[None])
        yield session.run([contract.outputs.label_map], feeds)[0][0]


def _agreement(wanted: Iterable[UInt8Array], got: Iterable[UInt8Array]) -> float:
    """Compute the share of equal labels, the mean over images."""
    return float(np.mean([(a == b).mean() for a, b in zip(wanted, got, strict=True)]))


def _classes(labels: Iterable[UInt8Array]) -> int:
    return len(set().union(*(np.unique(each).tolist() for each in labels)))


def _scores(
    session: Any, contract: Contract, scored: Sequence[SegmentationDataset], progress: bool
) -> dict[str, float]:
    """Measure `<split>_<metric>`, in 0..1, as `fcn export` names them."""
    scores: dict[str, float] = {}
    for data in scored:
        confusion = Confusion(data.num_classes)
        bar = tqdm(_images(data), data.split, unit="image", disable=not progress)
        for index, labels in enumerate(_labels(session, contract, bar)):
            confusion.add(data.target(index), labels)
        measured = confusion.scores()
        for metric in ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu"):
            scores[f"{data.split}_{metric}"] = round(getattr(measured, metric), 6)
    return scores


def _check_target(target: Path, overwrite: bool) -> None:
    """Raises: QuantizeError."""
    if target.exists() and not overwrite:
        raise QuantizeError(f"{target} exists: choose another --out or say --overwrite")


def _write(proto: onnx.ModelProto, contract: Contract, target: Path) -> None:
    with written_beside(target) as temporary:
        save(proto, contract, temporary)
