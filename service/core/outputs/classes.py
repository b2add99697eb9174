"""Finds which classes a reply is about, and how much of the image each of them has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from PIL import Image

from model.contract import Contract
from service.core.types import UInt8Array
from service.errors import InvalidParameter, quoted

VOID: Final = 255


def selected_ids(contract: Contract, classes: Sequence[str]) -> frozenset[int] | None:
    """Returns the ids of the classes named by name or number; None, for all, when none is named.

    Raises: InvalidParameter naming the class that there is not, and those that there are.
    """
    if not classes:
        return None
    selected = set()
    for name in classes:
        try:
            selected.add(contract.class_id(name))
        except KeyError:
            known = ", ".join(contract.class_names)
            raise InvalidParameter(
                f"class {quoted(name)} is not one of this model's: {known}"
            ) from None
    return frozenset(selected)


def select(label_map: UInt8Array, ids: frozenset[int] | None) -> UInt8Array:
    """Makes every id but these void (255), uint8 [H,W]."""
    if ids is None:
        return label_map
    table = np.full(256, VOID, np.uint8)
    for class_id in ids:
        table[class_id] = class_id
    return table[label_map]


def class_table(
    label_map: UInt8Array, contract: Contract, pixels: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Lists the classes present, by id: id, name, color, pixels, share of all pixels (0..1).

    pixels: of the 256 ids, if they have been counted.
    """
    if pixels is None:
        # numpy's bincount makes int64 of all pixels first: twice the time, eight times the memory.
        pixels = Image.fromarray(label_map).histogram()
    return [
        {
            "id": info.id,
            "name": info.name,
            "color": list(info.color),
            "pixels": pixels[info.id],
            "share": pixels[info.id] / label_map.size,
        }
        for info in contract.classes
        if pixels[info.id]
    ]
