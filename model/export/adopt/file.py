"""From a network to a file in a model repository, compared with the reference on the way."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from model.contract import Contract, InputSpec, OutputSpec
from model.export.adopt.errors import AdoptError
from model.export.adopt.network import Network
from model.export.adopt.original import Original
from model.export.adopt.probe import AdoptOptions, Probed, probe
from model.export.adopt.receptive_field import UnboundedField, halo_of
from model.export.adopt.reference import reference
from model.export.adopt.wrap import IMAGE, LABEL_MAP, LOGITS, wrap
from model.export.onnx_file import first_line, random_images, save, session, written_beside
from model.export.tidy import tidy

MIN_AGREEMENT: Final = 0.999
"""Share of equal labels. Rounding differs with the order of sums; ties may fall either way."""

_RANDOM_SIZES: Final = 4
_TRIAL_PX: Final = 64
"""Side of what a part answers for when parts are compared with the whole."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Pictures of one size. `classes`: how many of them the reference found; one tells little."""

    pictures: int
    height: int
    width: int
    label_agreement: float
    classes: int


@dataclass(frozen=True, slots=True)
class AdoptReport:
    """`label_agreement`: the worst size's. `largest_logit_difference`: relative to the largest
    logit, None without `logits`. `size`: what every picture is resized to."""

    path: str
    compared: tuple[Compared, ...]
    label_agreement: float
    largest_logit_difference: float | None
    kind: str
    size: tuple[int, int] | None
    multiple_of_px: int
    min_side_px: int
    context_px: int | None
    one_at_a_time: bool
    precision: str
    file_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> str:
        """For people."""
        lines = ["pictures        size  equal labels  classes found"]
        lines += [
            f"{row.pictures:8}  {f'{row.height}x{row.width}':>10}  {row.label_agreement:12.4%}  "
            f"{row.classes:13}"
            for row in self.compared
        ]
        if self.largest_logit_difference is not None:
            lines.append(f"logits differ by at most {self.largest_logit_difference:.1e} (relative)")
        if self.size:
            takes = f"every picture resized to {self.size[0]}x{self.size[1]}"
        else:
            takes = f"sides from {self.min_side_px} px in multiples of {self.multiple_of_px}"
        if self.one_at_a_time:
            takes += ", one after the other"
        lines.append(f"{self.path}: {self.file_bytes / 1e6:.1f} MB, {self.precision}; {takes}")
        return "\n".join(lines)


def adopt(
    network: Network,
    contract: Contract,
    path: Path,
    options: AdoptOptions,
    *,
    logits: bool = False,
    min_agreement: float = MIN_AGREEMENT,
) -> tuple[Contract, AdoptReport]:
    """Write `path`, `<repository>/<name>/<version>/model.onnx`; an existing file is replaced, and
    the folders are made, only after the new one has passed.

    contract: its input, outputs and precision are filled in here. Raises: AdoptError.
    """
    classes = len(contract.classes)
    original = Original(network)
    probed = probe(original, options, classes)
    if logits and probed.kind == "label_map":
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
        compared, difference = _compare(adopted, original, probed, options, logits)
        worst = min(row.label_agreement for row in compared)
        if worst < min_agreement:
            raise AdoptError(
                f"the adopted file agrees with the network on {worst:.2%} of the labels, and "
                f"{min_agreement:.2%} are wanted; nothing was written"
            )
        save(proto, contract, temporary)
    report = AdoptReport(
        path=str(path),
        compared=compared,
        label_agreement=worst,
        largest_logit_difference=difference,
        kind=probed.kind,
        size=probed.size,
        multiple_of_px=probed.multiple_of_px,
        min_side_px=probed.min_side_px,
        context_px=contract.input.context_px,
        one_at_a_time=probed.one_at_a_time,
        precision=contract.precision,
        file_bytes=path.stat().st_size,
    )
    return contract, report


def _compare(
    adopted: Any, original: Original, probed: Probed, options: AdoptOptions, logits: bool
) -> tuple[tuple[Compared, ...], float | None]:
    """Compare at random sizes, a batch among them, and the smallest. Raises: AdoptError."""
    random = np.random.default_rng(0)
    smallest, multiple = probed.min_side_px, probed.multiple_of_px
    sides = [random.integers(32, 257, 2) for _ in range(_RANDOM_SIZES)]
    planes = [*((int(h), int(w)) for h, w in sides), (smallest, smallest)]
    rows: list[Compared] = []
    largest, scale = 0.0, 1e-6
    for index, plane in enumerate(planes):
        height, width = (-(-max(px, smallest) // multiple) * multiple for px in plane)
        images = random_images(random, 2 if index == 1 else 1, height, width)
        wanted, wanted_logits = reference(original, probed, options, images)
        names = [LABEL_MAP, LOGITS] if logits else [LABEL_MAP]
        try:
            got = adopted.run(names, {IMAGE: images})
        except Exception as error:
            raise AdoptError(
                f"the adopted file does not run on {len(images)} pictures of {height}x{width}: "
                f"{first_line(error)}"
            ) from error
        if got[0].shape != wanted.shape or got[0].dtype != np.uint8:
            raise AdoptError(
                f"for {list(images.shape)} the adopted file gives {got[0].dtype} "
                f"{list(got[0].shape)}; nothing was written"
            )
        if logits and wanted_logits is not None:
            scale = max(scale, float(np.abs(wanted_logits).max()))
            largest = max(largest, float(np.abs(got[1] - wanted_logits).max()))
        agreement = float((got[0] == wanted).mean())
        found = len(np.unique(wanted))
        rows.append(Compared(len(images), height, width, agreement, found))
    return tuple(rows), largest / scale if logits else None


def _with_halo(adopted: Any, proto: onnx.ModelProto, contract: Contract) -> Contract:
    """The contract with stride and `context_px` if the graph has them and a trial confirms them.

    The trial: networks of any origin may know places, as by coordinates that they add to the
    image, which no receptive field shows.
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
    agrees = (whole[:, stride:-stride, stride:-stride] == labels)[:, inner, inner].mean()
    return replace(contract, input=spec) if agrees >= MIN_AGREEMENT else contract
