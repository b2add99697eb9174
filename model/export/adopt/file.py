"""From a network to a file in a model repository, compared with the reference on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from model.contract import Contract, InputSpec, OutputSpec
from model.export.adopt.network import Network
from model.export.adopt.options import AdoptError, AdoptOptions
from model.export.adopt.original import Original
from model.export.adopt.probe import Probed, probe
from model.export.adopt.receptive_field import UnboundedField, halo_of
from model.export.adopt.reference import reference, softmax
from model.export.adopt.wrap import IMAGE, LABEL_MAP, LOGITS, wrap
from model.export.onnx_file import (
    UInt8Array,
    first_line,
    random_images,
    save,
    session,
    written_beside,
)
from model.export.tidy import tidy

MIN_AGREEMENT: Final = 0.999
"""Share of equal labels. Rounding differs with the order of sums; ties may fall either way."""

MAX_DIFFERENCE: Final = 0.01
"""Probabilities this near count as equal. Half precision and int8 are off by less."""

_RANDOM_SIZES: Final = 4
_EMPTY: Final = (
    "every image compared is of one class, so equal labels prove nothing about pixels, channel "
    "order or threshold: give real images with --images FOLDER"
)
_TRIAL_PX: Final = 64
"""Side of what a part answers for when parts are compared with the whole."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Compares images of one size. `classes`: how many the reference found; one tells little."""

    images: int
    height: int
    width: int
    label_agreement: float
    classes: int
    kind: str = "random"


@dataclass(frozen=True, slots=True)
class AdoptReport:
    """Reports on the file that was written.

    `label_agreement`: the worst row's. `largest_difference`: between the network's probabilities
    and those of the served logits, None without `logits`. `size`: what every image is resized to.
    `meaning`: logits, probabilities or labels, "" if nothing depends on it."""

    path: str
    compared: tuple[Compared, ...]
    label_agreement: float
    largest_difference: float | None
    kind: str
    meaning: str
    threshold: float | None
    size: tuple[int, int] | None
    multiple_of_px: int
    min_side_px: int
    context_px: int | None
    one_at_a_time: bool
    precision: str
    file_bytes: int
    warning: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> str:
        """Writes the report for people."""
        lines = ["images         size  equal labels  classes found"]
        lines += [
            f"{row.images:6}  {f'{row.height}x{row.width}':>11}  {row.label_agreement:12.4%}  "
            f"{row.classes:13}  {row.kind}"
            for row in self.compared
        ]
        if self.largest_difference is not None:
            lines.append(f"probabilities differ by at most {self.largest_difference:.1e}")
        if self.threshold is not None:
            means = f" {self.meaning}" if self.meaning else ""
            lines.append(f"one score,{means}: class 1 above {self.threshold:g}")
        if self.size:
            takes = f"every image resized to {self.size[0]}x{self.size[1]}"
        else:
            takes = f"sides from {self.min_side_px} px in multiples of {self.multiple_of_px}"
        if self.one_at_a_time:
            takes += ", one after the other"
        lines.append(f"{self.path}: {self.file_bytes / 1e6:.1f} MB, {self.precision}; {takes}")
        if self.warning:
            lines.append(f"warning: {self.warning}")
        return "\n".join(lines)


def adopt(
    network: Network,
    contract: Contract,
    path: Path,
    options: AdoptOptions,
    *,
    logits: bool = False,
    min_agreement: float = MIN_AGREEMENT,
    images: Sequence[UInt8Array] = (),
) -> tuple[Contract, AdoptReport]:
    """Write `path`, `<repository>/<name>/<version>/model.onnx`; an existing file is replaced, and
    the folders are made, only after the new one has passed.

    images: real ones, uint8 RGB [H,W,3], that are compared beside random ones. contract: its input,
    outputs and precision are filled in here. Raises: AdoptError.
    """
    classes = len(contract.classes)
    original = Original(network)
    probed = probe(original, options, classes, logits=logits)
    output = probed.output
    if logits and output.kind == "label_map":
        raise AdoptError(f"output {network.output!r} is labels: there are no logits to give")
    proto = wrap(network, probed, options, classes, logits=logits)
    contract = replace(
        contract,
        input=InputSpec(
            name=IMAGE,
            stride=probed.multiple_of_px,
            min_side_px=probed.min_side_px,
            multiple_of_px=probed.multiple_of_px,
        ),
        outputs=OutputSpec(LABEL_MAP, LOGITS if logits else None),
        precision=network.precision,
    )
    tidy(proto, contract)
    proto.producer_name = "fcn adopt"
    with written_beside(path) as temporary:
        try:
            onnx.checker.check_model(proto)
            adopted = session(proto)
        except Exception as error:  # the checker's and the runtime's share no base class
            raise AdoptError(f"the adopted graph does not load: {first_line(error)}") from error
        contract = _with_halo(adopted, proto, contract)
        rows, difference = _compare(adopted, original, probed, options, logits, images)
        compared = tuple(rows)
        worst = min(row.label_agreement for row in compared)
        if worst < min_agreement:
            raise AdoptError(
                f"the adopted file agrees with the network on {worst:.2%} of the pixels, and "
                f"{min_agreement:.2%} are wanted; nothing was written"
            )
        save(proto, contract, temporary)
    report = AdoptReport(
        path=str(path),
        compared=compared,
        label_agreement=worst,
        largest_difference=difference,
        kind=output.kind,
        meaning=output.meaning,
        threshold=output.threshold if output.kind == "score" else None,
        size=probed.size,
        multiple_of_px=probed.multiple_of_px,
        min_side_px=probed.min_side_px,
        context_px=contract.input.context_px,
        one_at_a_time=probed.one_at_a_time,
        precision=contract.precision,
        file_bytes=path.stat().st_size,
        warning=None if max(row.classes for row in compared) > 1 else _EMPTY,
    )
    return contract, report


def _compare(
    adopted: Any,
    original: Original,
    probed: Probed,
    options: AdoptOptions,
    logits: bool,
    given: Sequence[UInt8Array],
) -> tuple[list[Compared], float | None]:
    """Compare labels, and probabilities where logits are served. Raises: AdoptError."""
    rows: list[Compared] = []
    largest = 0.0
    for kind, images in _trials(probed, given):
        count, height, width, _ = images.shape
        wanted, shares = reference(original, probed, options, images)
        names = [LABEL_MAP, LOGITS] if logits else [LABEL_MAP]
        try:
            got = adopted.run(names, {IMAGE: images})
        except Exception as error:
            raise AdoptError(
                f"the adopted file does not run on {count} images of {height}x{width}: "
                f"{first_line(error)}"
            ) from error
        if got[0].shape != wanted.shape or got[0].dtype != np.uint8:
            raise AdoptError(
                f"for {list(images.shape)} the adopted file gives {got[0].dtype} "
                f"{list(got[0].shape)}; nothing was written"
            )
        equal = got[0] == wanted
        if logits and shares is not None:
            served = np.stack([softmax(scores) for scores in got[1]])
            difference = np.abs(served - shares).max(axis=1)
            largest = max(largest, float(difference.max()))
            equal &= difference <= MAX_DIFFERENCE
        found = len(np.unique(wanted))
        rows.append(Compared(count, height, width, float(equal.mean()), found, kind))
    return rows, largest if logits else None


def _trials(probed: Probed, given: Sequence[UInt8Array]) -> Iterator[tuple[str, UInt8Array]]:
    """Yields random images of random sizes, a batch and the smallest too; then the user's."""
    random = np.random.default_rng(0)
    smallest, multiple = probed.min_side_px, probed.multiple_of_px
    sides = [random.integers(32, 257, 2) for _ in range(_RANDOM_SIZES)]
    planes = [*((int(h), int(w)) for h, w in sides), (smallest, smallest)]
    for index, plane in enumerate(planes):
        height, width = (-(-max(px, smallest) // multiple) * multiple for px in plane)
        yield "random", random_images(random, 2 if index == 1 else 1, height, width)
    for image in given:
        missing = (-(-max(px, smallest) // multiple) * multiple - px for px in image.shape[:2])
        padding = [*((0, px) for px in missing), (0, 0)]
        yield "given", np.pad(image, padding)[None]


def _with_halo(adopted: Any, proto: onnx.ModelProto, contract: Contract) -> Contract:
    """Adds stride and `context_px` to the contract if the graph has them and a trial confirms them.

    The trial: networks of any origin may know places, as by coordinates that they add to the
    image, which no receptive field shows. Equal labels of a single class confirm nothing.
    """
    try:
        halo = halo_of(proto, contract)
    except UnboundedField:
        return contract
    stride = int(np.lcm(halo.stride, contract.input.multiple_of_px))
    px = -(-halo.halo_px // stride) * stride
    spec = replace(contract.input, stride=stride, context_px=px)
    side = 2 * px + 2 * stride + -(-max(_TRIAL_PX, spec.min_side_px) // stride) * stride
    image = random_images(np.random.default_rng(1), 1, side, side)
    part = np.ascontiguousarray(image[:, stride : side - stride, stride : side - stride])
    whole, labels = (adopted.run([LABEL_MAP], {IMAGE: x})[0] for x in (image, part))
    inner = slice(px, part.shape[1] - px)
    there = labels[:, inner, inner]
    agrees = (whole[:, stride:-stride, stride:-stride][:, inner, inner] == there).mean()
    confirmed = agrees >= MIN_AGREEMENT and len(np.unique(there)) > 1
    return replace(contract, input=spec) if confirmed else contract
