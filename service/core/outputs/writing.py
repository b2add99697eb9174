"""The body of a reply, out of a label map or of scores, as the options ask for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from model.contract import Contract
from service.core import outputs as render
from service.core.batching.policy import Postprocess
from service.core.models.loader import Served
from service.core.types import Output, SegmentOptions, Timings
from service.errors import InvalidParameter

UInt8Array = npt.NDArray[np.uint8]


def check_output(options: SegmentOptions, served: Served) -> frozenset[int] | None:
    """The ids to keep, see `render.kept_ids`. Raises: InvalidParameter."""
    output = options.output
    wanted = [*options.scores, *([output] if output and output.needs_logits else [])]
    if wanted and served.contract.outputs.logits is None:
        raise InvalidParameter(
            f"output {wanted[0]} needs the logits, and model {served.name} version "
            f"{served.version} was exported without them: export it with --logits, or choose "
            "another output"
        )
    if options.scores and len(wanted) > len(options.scores):
        raise InvalidParameter(
            f"output {output} and arrays of scores are asked for at once: ask for one of them"
        )
    return render.kept_ids(served.contract, options.classes)


def check_size(
    options: SegmentOptions,
    contract: Contract,
    selected_ids: frozenset[int] | None,
    height: int,
    width: int,
) -> None:
    """Raises: ImageTooLarge when what is asked for would be too many bytes."""
    if options.output is Output.PROBABILITIES:
        classes = len(contract.classes if selected_ids is None else selected_ids)
        render.check_size(height, width, classes, options.dtype)
    if options.scores:
        render.check_arrays(
            height, width, len(contract.classes), options.scores, options.max_scores_bytes
        )


def reduction(options: SegmentOptions, selected_ids: frozenset[int] | None) -> Postprocess | None:
    """Makes of logits what the reply needs; None where it needs none."""
    reduce: Callable[[Any, UInt8Array], npt.NDArray[Any]]
    if options.scores:
        reduce = partial(render.arrays, wanted=options.scores)
    elif options.output is Output.PROBABILITIES:
        reduce = partial(render.probabilities, dtype=options.dtype, kept=selected_ids)
    elif options.output is Output.CONFIDENCE:
        reduce = partial(render.confidence, kept=selected_ids)
    else:
        return None

    def postprocess(label_map: UInt8Array, logits: Any) -> npt.NDArray[Any]:
        return reduce(logits, label_map)

    return postprocess


def pack(label_map: UInt8Array, palette: UInt8Array, kept: frozenset[int] | None) -> bytes:
    return render.label_map_png(render.keep(label_map, kept), palette)


def write_scores(options: SegmentOptions, scores: npt.NDArray[Any]) -> tuple[bytes, str]:
    """The reply's body and its media type, of an output that needs logits."""
    if options.output is Output.PROBABILITIES:
        return render.npy(scores), render.NPY
    return render.gray_png(scores), render.PNG


def write(
    options: SegmentOptions,
    served: Served,
    timings: Timings,
    rgb: UInt8Array,
    label_map: UInt8Array,
    kept: frozenset[int] | None,
) -> tuple[bytes, str]:
    """The reply's body and its media type, of an output that needs the label map only."""
    shown = render.keep(label_map, kept)
    palette = served.palette
    names = {"model": served.name, "version": served.version}
    match options.output:
        case Output.LABEL_MAP:
            return render.label_map_png(shown, palette), render.PNG
        case Output.COLOR:
            return render.color_png(shown, palette), render.PNG
        case Output.OVERLAY:
            body = render.overlay_png(rgb, shown, palette, options.alpha, outlines=options.outlines)
            return body, render.PNG
        case Output.RLE:
            return render.rle_json(shown, served.contract, **names), render.JSON
        case Output.POLYGONS:
            return render.polygons_json(shown, served.contract, **names), render.GEOJSON
        case Output.JSON:
            body = render.summary_json(shown, served.contract, timings=timings, **names)
            return body, render.JSON
    raise ValueError(f"{options.output} is not made of a label map")
