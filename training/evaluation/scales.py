"""Measures at which sizes of images a network labels as well as at their own."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tqdm import tqdm

from model.contract import METADATA_KEY, ContractError, InputSpec
from model.export.onnx_file import metadata, read_exported, save, written_beside
from model.modality import RGB
from service.core.images.scale import enlarged, resized
from training.datasets import SegmentationDataset
from training.datasets.base import UInt8Array
from training.evaluation.evaluate import EvaluationError, count_image
from training.evaluation.metrics import Confusion
from training.evaluation.predictors import Predictor

TOLERANCE: Final = 0.02
"""Mean IU that a size may be below the images' own and still belong to the range."""
_BESIDE: Final = ("model.int8.onnx", "model.fp16.onnx")


@dataclass(frozen=True, slots=True)
class ScaleScore:
    """Tells how well images of one size are labelled. longer_side_px: the median of them."""

    scale: float
    longer_side_px: int
    mean_iu: float


def score_scales(
    predict: Predictor,
    data: SegmentationDataset,
    scales: Sequence[float],
    *,
    every: int = 1,
    progress: bool = True,
) -> tuple[ScaleScore, ...]:
    """Measures each `every`-th image of the split at each size, and at its own, in their order.

    Images are resampled bicubically; the answers, at the original pixels, are compared with the
    labels as they are. Raises: DatasetError, EvaluationError.
    """
    if data.info.modality != RGB:
        raise EvaluationError(f"--scales is for RGB images, and the data set's are {RGB}: omit it")
    indices = range(0, len(data), every)
    wanted = sorted({1.0, *scales})
    confusions = {scale: Confusion(data.info.head_sizes) for scale in wanted}
    sides = []
    for index in tqdm(indices, "scales", unit="image", disable=not progress):
        sample = data[index]
        sides.append(max(sample.target.shape[:2]))
        for scale in wanted:
            answer = _at(scale, predict, sample.image)
            count_image(confusions[scale], data.pairs[index][0], sample.target, answer)
    side = statistics.median(sides)
    return tuple(
        ScaleScore(scale, round(scale * side), confusions[scale].scores().mean_iu)
        for scale in wanted
    )


def known_range(scores: Sequence[ScaleScore]) -> dict[str, int]:
    """Finds the fields of `InputSpec` that say at which sizes images are labelled well."""
    own = next(n for n, score in enumerate(scores) if score.scale == 1)
    least = scores[own].mean_iu - TOLERANCE
    first = last = own
    while first > 0 and scores[first - 1].mean_iu >= least:
        first -= 1
    while last + 1 < len(scores) and scores[last + 1].mean_iu >= least:
        last += 1
    return {
        "learned_side_px": scores[own].longer_side_px,
        "range_from_px": scores[first].longer_side_px,
        "range_to_px": scores[last].longer_side_px,
    }


def table(scores: Sequence[ScaleScore]) -> str:
    """Formats what was measured; in percent."""
    rows = [f"{s.scale:>5g}  {s.longer_side_px:>16}  {100 * s.mean_iu:>11.2f}" for s in scores]
    found = known_range(scores)
    first, last = found["range_from_px"], found["range_to_px"]
    within = f"Within {100 * TOLERANCE:g} of the images' own size: {first} to {last} px."
    return "\n".join(["scale  longer side [px]  mean IU [%]", *rows, "", within])


def write_range(path: Path, found: dict[str, int]) -> list[Path]:
    """Writes the range into the contract of an exported file, and of the int8 and fp16 files beside
    it; returns those that were written. Raises: NotExported, EvaluationError, OSError."""
    beside = [path.with_name(name) for name in _BESIDE if path.name == "model.onnx"]
    written = [path, *(other for other in beside if other.is_file())]
    for file in written:
        proto, contract = read_exported(file)
        spec = with_range(contract.input, found)
        try:
            changed = replace(contract, input=spec, format_version=spec.format_version)
        except ContractError as error:
            raise EvaluationError(f"{file}: {error}") from error
        with written_beside(file) as temporary:
            rest = {key: text for key, text in metadata(proto).items() if key != METADATA_KEY}
            save(proto, changed, temporary, rest)
    return written


def with_range(spec: InputSpec, found: object) -> InputSpec:
    """Adds the range, as `fcn evaluate --scales --json` prints it; None for none.

    Raises: ContractError.
    """
    if found is None:
        return spec
    names = ("learned_side_px", "range_from_px", "range_to_px")
    if not isinstance(found, dict) or not all(type(found.get(name)) is int for name in names):
        raise ContractError(f"the measured input_range is {found!r}: measure it again")
    learned, first, last = (found[name] for name in names)
    return replace(spec, learned_side_px=learned, range_from_px=first, range_to_px=last)


def _at(scale: float, predict: Predictor, image: UInt8Array) -> UInt8Array:
    height, width = image.shape[:2]
    size = max(1, round(scale * height)), max(1, round(scale * width))
    answer: UInt8Array = enlarged(predict(resized(image, size)), (height, width))
    return answer
