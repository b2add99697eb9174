"""Tells what is in the image, as JSON."""

from __future__ import annotations

import json

from model.contract import Contract
from service.core.outputs.classes import class_table
from service.core.outputs.registry import JSON, OutputFormat
from service.core.types import Timings, UInt8Array


def summary_json(
    label_map: UInt8Array,
    contract: Contract,
    *,
    model: str,
    version: str,
    timings: Timings,
    network_size: tuple[int, int],
) -> bytes:
    """Writes height, width, those that the network saw, model, version, classes (see
    `class_table`), timings_ms by stage.

    The time of encoding is not in it: the text is written before that is known.
    """
    height, width = label_map.shape
    body = {
        "model": model,
        "version": version,
        "height": height,
        "width": width,
        "network_height": network_size[0],
        "network_width": network_size[1],
        "classes": class_table(label_map, contract),
        "timings_ms": {
            "decode": round(timings.decode_s * 1e3, 3),
            "queue": round(timings.queue_s * 1e3, 3),
            "infer": round(timings.infer_s * 1e3, 3),
        },
    }
    return json.dumps(body).encode()


OUTPUT = OutputFormat(
    "json",
    JSON,
    lambda reply: summary_json(
        reply.label_map,
        reply.contract,
        model=reply.model,
        version=reply.version,
        timings=reply.timings,
        network_size=reply.network_size,
    ),
    answers_media_type=True,
)
