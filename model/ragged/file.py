"""From a model file to a ragged one, compared with the first on the way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from model.contract import Contract
from model.exported import NotExported, read_exported
from model.ragged.maps import NotRagged
from model.ragged.rewrite import ragged

UInt8Array = npt.NDArray[np.uint8]

MATES: Final = ((45, 100), (97, 61), (1, 1), (64, 129), (32, 32), (130, 7))
"""Heights and widths in the batch that is tried: odd, square, tall, wide and one pixel."""

LOGIT_TOLERANCE: Final = 1e-3
LABEL_AGREEMENT: Final = 0.999
"""As of an export: rounding may differ with the size of a tensor, and ties fall either way. On the
CPU no label was seen to differ; in 16 bits some do."""


@dataclass(frozen=True, slots=True)
class MatesReport:
    """A batch of images of `sizes` against each of them alone.

    largest_logit_difference: relative to the largest logit, None where the file gives labels only.
    label_agreement: the worst image's share of equal labels.
    """

    path: str
    sizes: tuple[tuple[int, int], ...]
    label_agreement: float
    largest_logit_difference: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_ragged(source: Path, target: Path, *, overwrite: bool = False) -> MatesReport:
    """Write `target`; a file that is there is replaced only after the new one has passed.

    Raises: NotRagged if the file has no contract, has a layer that forbids it, or gives other
    answers than `source`.
    """
    if target.exists() and not overwrite:
        raise NotRagged(f"{target} exists: choose another name or say --overwrite")
    proto, contract = _read(source)
    changed, changed_contract = ragged(proto, contract)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        onnx.save_model(changed, str(temporary))
        report = check_mates(source, contract, temporary, changed_contract)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return MatesReport(
        str(target), report.sizes, report.label_agreement, report.largest_logit_difference
    )


def check_mates(source: Path, contract: Contract, path: Path, changed: Contract) -> MatesReport:
    """Runs `path` with a ragged batch, and `source`, which may be the same, with each image alone.

    Raises: NotRagged if they differ by more than LOGIT_TOLERANCE, or agree on fewer labels than
    LABEL_AGREEMENT.
    """
    alone = _session(source)
    together = alone if source == path else _session(path)
    names = [contract.outputs.label_map]
    if contract.outputs.logits:
        names.append(contract.outputs.logits)
    sizes = _allowed(contract)
    images = [_drawn(height, width) for height, width in sizes]
    answers = together.run(names, changed.feeds(padded(images), sizes))
    agreement, difference = 1.0, 0.0
    for index, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
        wanted = alone.run(names, contract.feeds(image[None]))
        got = [answer[index, ..., :height, :width] for answer in answers]
        agreement = min(agreement, float((got[0] == wanted[0][0]).mean()))
        if contract.outputs.logits:
            scale = max(float(np.abs(wanted[1]).max()), 1e-6)
            difference = max(difference, float(np.abs(got[1] - wanted[1][0]).max()) / scale)
    if agreement < LABEL_AGREEMENT or not difference <= LOGIT_TOLERANCE:
        raise NotRagged(
            f"{contract.model_name} answers otherwise in a ragged batch: logits differ by "
            f"{difference:.2e} (relative), labels on {1 - agreement:.2%} of an image; nothing was "
            "written"
        )
    logits = difference if contract.outputs.logits else None
    return MatesReport(str(path), tuple(sizes), agreement, logits)


def padded(images: Sequence[UInt8Array]) -> UInt8Array:
    """uint8 [H,W,3] of any sizes -> uint8 [N,H,W,3], each top left, zeros after it."""
    height = max(image.shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    batch = np.zeros((len(images), height, width, 3), np.uint8)
    for index, image in enumerate(images):
        batch[index, : image.shape[0], : image.shape[1]] = image
    return batch


def _read(path: Path) -> tuple[onnx.ModelProto, Contract]:
    """Raises: NotRagged."""
    try:
        proto, contract = read_exported(path)
    except NotExported as error:
        raise NotRagged(str(error)) from error
    if contract.precision == "int8":
        raise NotRagged(
            f"{path} is int8, which is for CPUs, where ragged batches gain nothing: give the file "
            "it was made of"
        )
    return proto, contract


def _allowed(contract: Contract) -> list[tuple[int, int]]:
    """MATES as the contract allows them: raised to its smallest side, to multiples."""
    spec = contract.input

    def side(px: int) -> int:
        px = max(px, spec.min_side_px)
        px = -(-px // spec.multiple_of_px) * spec.multiple_of_px
        return min(px, spec.max_side_px or px)

    return [(side(height), side(width)) for height, width in MATES]


def _drawn(height: int, width: int) -> UInt8Array:
    """uint8 [H,W,3]: blocks with grain, the same for a size; bright, as zeros lie beyond."""
    random = np.random.default_rng(height * 1000 + width)
    coarse = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    large = coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    grain = random.integers(0, 64, large.shape, np.uint8)
    return np.asarray(large // 4 * 3 + grain, np.uint8)


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
