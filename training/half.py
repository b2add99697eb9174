"""Writing the fp16 form of a model, and saying what of it is fp16 and how near its labels come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from model.float_model import QuantizeError, open_float_model, simulate
from model.half import HEADROOM, LARGEST, Halver
from training.datasets.base import SegmentationDataset
from training.reduced import Images, agreement_of, check_target, labels_of, outcome, save, scores_of


@dataclass(frozen=True, slots=True)
class LayerRange:
    """`largest`: absolute value that the layer's convolution gave on the pictures."""

    layer: str
    largest: float
    half: bool


@dataclass(frozen=True, slots=True)
class HalfReport:
    """`agreement`: share of labels equal to the fp32 file's over `compared` images, with every
    fp16 number rounded as a GPU rounds it."""

    path: str
    calibrated: int
    compared: int
    headroom: float
    agreement: float
    layers: tuple[LayerRange, ...]
    file_bytes: int
    scores: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> str:
        width = max(len(row.layer) for row in self.layers)
        lines = [f"{'layer':{width}}  largest value  of {LARGEST:.0f}  precision"]
        lines += [
            f"{row.layer:{width}}  {row.largest:13.1f}  {row.largest / LARGEST:8.2%}  "
            f"{'fp16' if row.half else 'fp32'}"
            for row in self.layers
        ]
        lines += outcome(self.path, self.file_bytes, self.agreement, self.compared, self.scores)
        return "\n".join(lines)


def halve_file(
    source: Path,
    target: Path,
    calibration: Images,
    comparison: Images,
    *,
    min_agreement: float,
    headroom: float = HEADROOM,
    keep_float: Sequence[str] = (),
    scored: Sequence[SegmentationDataset] = (),
    overwrite: bool = False,
    progress: bool = True,
) -> HalfReport:
    """Write `target`, the fp16 form of `source`. `scored`: splits whose scores its contract gets.

    A layer that gave values above the end of fp16 over `headroom` stays in fp32, and so do those of
    `keep_float`. Raises: QuantizeError, also if the labels agree with the fp32 file's on less than
    `min_agreement` of the pixels of `comparison`; DatasetError.
    """
    model = open_float_model(source)
    check_target(target, overwrite)
    reading = (read() for read in tqdm(calibration, "look at values", disable=not progress))
    halver = Halver(model, reading, headroom)
    proto = halver.halve(keep_float)
    session = simulate(halver.simulated(keep_float), optimized=True)
    wanted = labels_of(simulate(model.proto, optimized=True), model.contract, comparison)
    got = labels_of(session, model.contract, comparison)
    agreement = agreement_of(wanted, got)
    if agreement < min_agreement:
        raise QuantizeError(
            f"in fp16 {source} gives {agreement:.3%} of the pixels the fp32 file's label, fewer "
            f"than {min_agreement:.3%}: lower --min-agreement, or name layers with --keep-float"
        )
    scores = scores_of(session, model.contract, scored, progress)
    save(proto, model.contract, "fp16", scores, target)
    half = halver.half_layers(keep_float)
    return HalfReport(
        str(target), len(calibration), len(comparison), headroom, agreement,
        tuple(LayerRange(layer, halver.largest(layer), layer in half) for layer in model.layers),
        target.stat().st_size, scores,
    )  # fmt: skip
