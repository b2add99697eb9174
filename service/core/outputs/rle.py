"""Writes the masks of the classes as COCO run lengths, which pycocotools reads.

The counts of a mask are the lengths of its runs, down the columns, beginning with pixels that are
not in it. Each is written as its difference to the count two before, in groups of five bits.
Source: cocoapi, common/maskApi.c, rleEncode and rleToString.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from model.contract import Contract
from service.core.outputs.classes import class_table
from service.core.outputs.registry import JSON, OutputFormat
from service.core.types import UInt8Array

Int64Array = npt.NDArray[np.int64]


def rle_json(label_map: UInt8Array, contract: Contract, *, model: str, version: str) -> bytes:
    """Writes height, width, model, version, and the classes present as `class_table` has them, each
    with `bbox` ([left, top, width, height]) and `segmentation` (COCO's {"size", "counts"}).
    """
    height, width = label_map.shape
    labels, starts, ends = _runs(label_map)
    pixels = np.bincount(labels, weights=ends - starts, minlength=256).astype(int).tolist()
    classes: list[dict[str, Any]] = class_table(label_map, contract, pixels)
    for row in classes:
        these = slice(*np.searchsorted(labels, (row["id"], row["id"] + 1)))
        row["bbox"] = _box(starts[these], ends[these], height)
        row["segmentation"] = {
            "size": [height, width],
            "counts": _compressed(_counts(starts[these], ends[these], label_map.size)),
        }
    body = {
        "model": model,
        "version": version,
        "height": height,
        "width": width,
        "classes": classes,
    }
    return orjson.dumps(body)


def _runs(label_map: UInt8Array) -> tuple[UInt8Array, Int64Array, Int64Array]:
    """Finds all runs of equal labels down the columns, in order of their labels.

    Their labels, and where they start and end, in pixels from the top left.
    """
    columns = np.ascontiguousarray(label_map.T).ravel()
    starts = np.concatenate(([0], np.flatnonzero(columns[1:] != columns[:-1]) + 1))
    ends = np.append(starts[1:], columns.size)
    labels = columns[starts]
    order = np.argsort(labels, kind="stable")
    return labels[order], starts[order], ends[order]


def _counts(starts: Int64Array, ends: Int64Array, size: int) -> Int64Array:
    """Counts runs out of and in the mask by turns; the last one is left out if it is empty."""
    edges = np.empty(2 * len(starts) + 2, np.int64)
    edges[0], edges[-1] = 0, size
    edges[1:-1:2], edges[2:-1:2] = starts, ends
    counts = np.diff(edges)
    return counts if counts[-1] else counts[:-1]


def _compressed(counts: Int64Array) -> str:
    left = counts.astype(np.int32)
    left[3:] -= left[1:-2].copy()
    groups: list[UInt8Array] = []
    going = np.ones(len(left), bool)
    while going.any():
        bits = left.astype(np.uint8) & 0x1F
        left >>= 5
        # Over when what is left is the sign.
        more = left != -((bits & 0x10) >> 4).astype(np.int8)
        groups.append((bits + 48 + (more.view(np.uint8) << 5)) * going)
        going = more
    text = np.stack(groups, axis=1).ravel()
    return bytes(text[text != 0]).decode("ascii")


def _box(starts: Int64Array, ends: Int64Array, height: int) -> list[int]:
    """Returns [left, top, width, height] in pixels of what the runs cover."""
    left, right = int(starts[0]) // height, (int(ends[-1]) - 1) // height
    # A run that goes on into the next column has been at the bottom and begins again at the top.
    first, last = starts // height, (ends - 1) // height
    over = bool((first != last).any())
    top = 0 if over else int((starts % height).min())
    bottom = height - 1 if over else int(((ends - 1) % height).max())
    return [left, top, right - left + 1, bottom - top + 1]


OUTPUT = OutputFormat(
    "rle",
    JSON,
    lambda reply: rle_json(
        reply.label_map, reply.contract, model=reply.model, version=reply.version
    ),
)
