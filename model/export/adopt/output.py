"""Reading the output of a network: scores of every class, one score, or labels, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model.export.adopt.meaning import Evidence, evidence_of, meaning_of
from model.export.adopt.network import Network
from model.export.adopt.options import AdoptError, AdoptOptions

_VOID: Final = 255


@dataclass(frozen=True, slots=True)
class Output:
    """Describes an output.

    kind: "scores" of every class, "score" of class 1 alone, or "label_map".

    axis: of the channels, None where the output has none. meaning: "logits", "probabilities" or
    "labels", or "" where nothing depends on it. threshold: above it a "score" means class 1.
    """

    kind: str
    axis: int | None
    meaning: str
    threshold: float = 0.0

    def plane(self, dims: tuple[int, ...]) -> tuple[int, int]:
        """Gives height and width of a result of these dimensions."""
        height, width = (d for place, d in enumerate(dims) if place not in (0, self.axis))
        return height, width


def read_output(
    network: Network,
    results: Mapping[tuple[int, int], npt.NDArray[Any]],
    options: AdoptOptions,
    classes: int,
    *,
    logits: bool,
) -> Output:
    """Tells what the network answers. results: by image size. Raises: AdoptError."""
    evidence = evidence_of(network.proto.graph, network.output)
    size, first = next(iter(results.items()))
    name, dims = f"output {network.output!r}", first.shape
    shown = f"{name} is {list(dims)} for images of {size[0]}x{size[1]}"
    values = list(results.values())
    flat = len(dims) == 3 or len(dims) == 4 and 1 in (dims[1], dims[3])
    said = options.output_is
    if (said == "labels" or said is None and flat) and _are_labels(name, said, evidence, values):
        if not flat:
            raise AdoptError(f"{shown}, which is no label map: leave --output-is labels out")
        if options.threshold is not None:
            raise AdoptError(f"{name} is labels, which no threshold is for: leave it out")
        _check_ids(name, values, classes)
        axis = None if len(dims) == 3 else 1 if dims[1] == 1 else 3
        return Output("label_map", axis, "labels")
    axis = _channels(shown, size, dims, options, classes)
    if axis is None or dims[axis] == 1:
        return _one_score(name, axis, evidence, values, options, logits=logits)
    if options.threshold is not None:
        raise AdoptError(
            f"a threshold is for networks with a single score per pixel; this one gives {classes}"
        )
    meaning = meaning_of(name, said, evidence, values, axis)
    if logits and not meaning:
        if evidence.meaning == "probabilities" or said == "probabilities":
            raise AdoptError(
                f"{name} gives probabilities that do not sum to 1 over the classes, which no "
                "softmax answers: leave --logits out"
            )
        raise AdoptError(
            f"does {name} give logits or probabilities? Neither its graph nor its values tell: say "
            "--output-is logits or probabilities, or leave --logits out"
        )
    return Output("scores", axis, meaning)


def _are_labels(
    name: str, stated: str | None, evidence: Evidence, values: list[npt.NDArray[Any]]
) -> bool:
    """Raises: AdoptError for whole numbers and fractions that should be the other."""
    integers = values[0].dtype.kind in "iub"
    whole = integers or all((v == np.rint(v)).all() for v in values)
    if stated == "labels":
        if not whole:
            raise AdoptError(
                f"{name} is no label map, for it has fractions: say --output-is logits or "
                "probabilities"
            )
        return True
    if evidence.meaning == "labels" and not whole:
        raise AdoptError(
            f"{name} is made of labels, by the graph's {evidence.node}, and has fractions: a "
            "resize that averages labels makes nonsense of them; export it with nearest, or name "
            "an --output before it"
        )
    if integers and evidence.meaning not in ("", "labels"):
        raise AdoptError(
            f"{name} is {evidence.meaning} of {evidence.node} in whole numbers: name an --output "
            "before they are rounded, or say --output-is labels"
        )
    return integers or evidence.meaning == "labels"


def _check_ids(name: str, values: list[npt.NDArray[Any]], classes: int) -> None:
    ids = np.unique(np.concatenate([np.unique(v) for v in values])).astype(np.int64)
    if set(ids) == {0, _VOID} or set(ids) == {_VOID}:
        raise AdoptError(
            f"{name} is a mask of 0 and 255, and 255 means no class here: export it with 0 and 1"
        )
    ids = ids[ids != _VOID]
    if ids.max() >= classes or ids.min() < 0:
        raise AdoptError(
            f"{name} answers classes {ids.min()} to {ids.max()} and the class list has {classes}: "
            "its ids must count from 0 to the highest that the network answers"
        )


def _channels(
    shown: str, size: tuple[int, int], dims: tuple[int, ...], options: AdoptOptions, classes: int
) -> int | None:
    """Finds the axis of the scores' channels, None where there is none and one score."""
    if len(dims) == 3 and classes == 2:
        return None
    if len(dims) != 4:
        raise AdoptError(
            f"{shown}: want scores as [N,C,H,W] or [N,H,W,C], labels as [N,H,W], or with a class "
            "list of two one score as [N,H,W]"
        )
    axes = (1, 3) if options.output_layout is None else (options.output_layout.index("C"),)
    if fitting := [axis for axis in axes if dims[axis] == classes]:
        if len(fitting) == 2:
            raise AdoptError(
                f"{shown}, which does not say where its channels are: say "
                "--output-layout NCHW or NHWC"
            )
        return fitting[0]
    single = [axis for axis in axes if dims[axis] == 1]
    if classes == 2 and single:
        return single[0]
    found = " or ".join(str(dims[axis]) for axis in axes if dims[axis] not in size) or str(dims[1])
    raise AdoptError(
        f"{shown}, which is scores of {found} classes, and the class list has {classes}: give a "
        "list with an entry for each, background included, in the network's order"
        + (" (with one score there are two classes)" if single else "")
    )


def _one_score(
    name: str,
    axis: int | None,
    evidence: Evidence,
    values: list[npt.NDArray[Any]],
    options: AdoptOptions,
    *,
    logits: bool,
) -> Output:
    meaning = meaning_of(name, options.output_is, evidence, values, None)
    threshold = options.threshold
    lowest, highest = min(v.min() for v in values), max(v.max() for v in values)
    if not meaning and (threshold is None or logits):
        raise AdoptError(
            f"does {name} give logits or probabilities? It is one score from {lowest:.3g} to "
            f"{highest:.3g}, and its graph does not tell: say --output-is logits (class 1 above "
            "0), probabilities (above 0.5) or labels"
            + (", or leave --logits out" if logits else ", or a --threshold")
        )
    if threshold is None:
        threshold = 0.5 if meaning == "probabilities" else 0.0
    elif meaning == "probabilities" and not 0 < threshold < 1:
        raise AdoptError(f"{name} gives probabilities: the threshold {threshold:g} is not in 0..1")
    elif not np.isfinite(threshold):
        raise AdoptError(f"the threshold {threshold:g} is no finite number")
    return Output("score", axis, meaning, threshold)
