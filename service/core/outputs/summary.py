"""What is in the picture, as JSON."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt

from model.contract import Contract
from service.core.outputs.classes import class_table
from service.core.types import Timings

UInt8Array = npt.NDArray[np.uint8]


def summary_json(
    label_map: UInt8Array,
    contract: Contract,
    *,
    model: str,
    version: str,
    timings: Timings,
) -> bytes:
    """height, width, model, version, classes (see `class_table`), timings_ms by stage.

    The time of rendering is not in it: the text is written before that is known.
    """
    height, width = label_map.shape
    body = {
        "model": model,
        "version": version,
        "height": height,
        "width": width,
        "classes": class_table(label_map, contract),
        "timings_ms": {
            "decode": round(timings.decode_s * 1e3, 3),
            "queue": round(timings.queue_s * 1e3, 3),
            "infer": round(timings.infer_s * 1e3, 3),
        },
    }
    return json.dumps(body).encode()
