"""Choosing what of a network becomes 8-bit: calibration, sensitivity, and what stays in float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from tqdm import tqdm

from model.float_model import QuantizeError, open_float_model, simulate
from model.quantize import Method, Quantizer
from training.datasets.base import SegmentationDataset
from training.reduced import Images, agreement_of, check_target, labels_of, outcome, save, scores_of


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
        lines.append(f"with every layer quantised, labels agree on {self.agreement_of_all:.3%}")
        lines += outcome(self.path, self.file_bytes, self.agreement, self.compared, self.scores)
        return "\n".join(lines)


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
    check_target(target, overwrite)
    if unknown := sorted(set(keep_float) - set(model.layers)):
        known = ", ".join(model.layers)
        raise QuantizeError(f"there is no layer {unknown[0]!r}: choose from {known}")
    reading = (read() for read in tqdm(calibration, "calibrate", disable=not progress))
    quantizer = Quantizer(model, reading, method)
    wanted = list(labels_of(simulate(model.proto), model.contract, comparison))

    def make(layers: Sequence[str]) -> tuple[onnx.ModelProto, float]:
        proto = quantizer.quantize(layers, reduce_range=reduce_range)
        return proto, agreement_of(wanted, labels_of(simulate(proto), model.contract, comparison))

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
    scores = scores_of(simulate(proto), model.contract, scored, progress)
    save(proto, model.contract, "int8", scores, target)
    return QuantizeReport(
        str(target), method, reduce_range, len(calibration), len(comparison), agreement, of_all,
        tuple(LayerReport(layer, alone[layer], layer in chosen) for layer in model.layers),
        target.stat().st_size, scores,
    )  # fmt: skip
