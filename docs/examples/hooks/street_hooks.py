"""Shows four hooks for streets: a crop, a merge of classes, other colours, an alert."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from service.hooks import Hook, HookContext

UInt8Array = npt.NDArray[np.uint8]
VOID = 255


class LowerHalf(Hook):
    """Looks at the lower half of each image alone: the rest is black, and its labels are void."""

    def before(self, image: UInt8Array, context: HookContext) -> UInt8Array:
        image[: len(image) // 2] = 0
        return image

    def after(self, label_map: UInt8Array, context: HookContext) -> UInt8Array:
        label_map[: len(label_map) // 2] = VOID
        return label_map


class Merge(Hook):
    """Answers "pedestrian" for bicyclists, too."""

    def after(self, label_map: UInt8Array, context: HookContext) -> UInt8Array:
        ids = {info.name: info.id for info in context.classes}
        if {"pedestrian", "bicyclist"} <= ids.keys():  # a server may have other models, too
            label_map[label_map == ids["bicyclist"]] = ids["pedestrian"]
        return label_map


class Colors(Hook):
    """Draws roads yellow."""

    def palette(self, palette: UInt8Array, context: HookContext) -> UInt8Array:
        for info in context.classes:
            if info.name == "road":
                palette[info.id] = 255, 220, 0
        return palette


class Alert(Hook):
    """Warns in the server's log where cars cover a third of the image."""

    def after(self, label_map: UInt8Array, context: HookContext) -> UInt8Array:
        cars = [info.id for info in context.classes if info.name == "car"]
        if (share := np.isin(label_map, cars).mean()) > 1 / 3:
            logging.getLogger("street_hooks").warning(
                "request %s: %.0f %% of the image are cars", context.request_id, 100 * share
            )
        return label_map
