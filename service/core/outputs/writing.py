"""The body of a reply, out of a label map or of scores, as the options ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from service.core import outputs as render
from service.core.batching.lanes import Squeeze
from service.core.images.prepare import Geometry, restore
from service.core.models.loader import LoadedModel
from service.core.types import Clock, Output, SegmentOptions, Timings
from service.errors import InvalidParameter

UInt8Array = npt.NDArray[np.uint8]


def check_output(options: SegmentOptions, served: LoadedModel) -> frozenset[int] | None:
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


def squeeze(options: SegmentOptions, kept: frozenset[int] | None) -> Squeeze | None:
    if options.scores:
        return partial(render.arrays, wanted=options.scores)
    match options.output:
        case Output.PROBABILITIES:
            return partial(render.probabilities, dtype=options.dtype, kept=kept)
        case Output.CONFIDENCE:
            return partial(render.confidence, kept=kept)
    return None


@dataclass(frozen=True, slots=True)
class Packed:
    """png: the palette PNG of a label map, which took `seconds`."""

    png: bytes
    seconds: float


def pack(
    clock: Clock,
    label_map: UInt8Array,
    *,
    geometry: Geometry,
    palette: UInt8Array,
    kept: frozenset[int] | None,
) -> Packed:
    began = clock()
    png = render.label_map_png(render.keep(restore(label_map, geometry), kept), palette)
    return Packed(png, clock() - began)


def write_scores(options: SegmentOptions, scores: npt.NDArray[Any]) -> tuple[bytes, str]:
    """The reply's body and its media type, of an output that needs logits."""
    if options.output is Output.PROBABILITIES:
        return render.npy(scores), render.NPY
    return render.gray_png(scores), render.PNG


def write(
    options: SegmentOptions,
    served: LoadedModel,
    timings: Timings,
    rgb: UInt8Array,
    label_map: UInt8Array,
    kept: frozenset[int] | None,
) -> tuple[bytes, str]:
    """The reply's body and its media type, of an output that needs the label map only."""
    if options.output is None:
        return b"", ""
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
