"""A label map -> the bytes of a reply: palette PNG, color PNG, overlay PNG, JSON.

PNGs are written at compression level 1: higher levels spend tens of milliseconds on a few percent.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.contract import Contract
from service.core.types import Timings
from service.errors import InvalidParameter, quoted

UInt8Array = npt.NDArray[np.uint8]

VOID = 255
PNG = "image/png"
JSON = "application/json"
_PNG_LEVEL = 1


def kept_ids(contract: Contract, classes: Sequence[str]) -> frozenset[int] | None:
    """Ids of the classes named by name or number; None (keep all) when none is named.

    Raises: InvalidParameter naming the class that there is not, and those that there are.
    """
    if not classes:
        return None
    kept = set()
    for name in classes:
        try:
            kept.add(contract.class_id(name))
        except KeyError:
            known = ", ".join(contract.class_names)
            raise InvalidParameter(
                f"class {quoted(name)} is not one of this model's: {known}"
            ) from None
    return frozenset(kept)


def keep(label_map: UInt8Array, ids: frozenset[int] | None) -> UInt8Array:
    """uint8 [H,W] -> uint8 [H,W] with every id but these as void (255)."""
    if ids is None:
        return label_map
    table = np.full(256, VOID, np.uint8)
    for class_id in ids:
        table[class_id] = class_id
    return table[label_map]


def label_map_png(label_map: UInt8Array, palette: UInt8Array) -> bytes:
    """8-bit palette PNG: a pixel's value is its class id, 255 is void.

    label_map: uint8 [H,W]. palette: RGB uint8 [256,3], written whole, since Pillow packs a palette
    of up to 16 colours into fewer than 8 bits.
    """
    image = Image.fromarray(label_map)
    image.putpalette(palette.tobytes())
    return _png(image)


def color_png(label_map: UInt8Array, palette: UInt8Array) -> bytes:
    """RGB PNG of the classes' colours; void is what the palette says, black."""
    return _png(Image.fromarray(palette[label_map]))


def overlay_png(rgb: UInt8Array, label_map: UInt8Array, palette: UInt8Array, alpha: float) -> bytes:
    """RGB PNG: (1 - alpha) * upload + alpha * colour, to the nearest 1/256; void is untouched.

    rgb: uint8 [H,W,3]. alpha: 0 (the upload) .. 1 (the colours).
    """
    weight = round(alpha * 256)
    # 8.8 fixed point fits uint16: 255 * 256 + 128 < 65536.
    colors = palette.astype(np.uint16) * np.uint16(weight) + np.uint16(128)
    mixed = rgb * np.uint16(256 - weight)
    mixed += colors[label_map]
    mixed >>= 8
    blended = mixed.astype(np.uint8)
    np.copyto(blended, rgb, where=(label_map == VOID)[:, :, None])
    return _png(Image.fromarray(blended))


def class_table(label_map: UInt8Array, contract: Contract) -> list[dict[str, Any]]:
    """The classes present, by id: id, name, color, pixels, share of all pixels (0..1)."""
    pixels = np.bincount(label_map.ravel(), minlength=256)
    return [
        {
            "id": info.id,
            "name": info.name,
            "color": list(info.color),
            "pixels": int(pixels[info.id]),
            "share": int(pixels[info.id]) / label_map.size,
        }
        for info in contract.classes
        if pixels[info.id]
    ]


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


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()
