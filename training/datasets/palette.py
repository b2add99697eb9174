"""Tells whether a palette PNG's numbers are its class ids, by the colours beside them.

A program that saves images smaller (optipng, oxipng, pngquant, "save for web") makes palette PNGs
of greyscale or coloured ones, with the colours in an order of its own: a label's number is then no
class id any more, and only the palette still tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from model.contract import ClassInfo

Color = tuple[int, int, int]

_BLACK: Color = (0, 0, 0)
_VOC_VOID: Color = (224, 224, 192)
"""How PASCAL VOC's palette, which many tools copied, shows void."""


def contradiction(
    labels: npt.NDArray[np.uint8], palette: Sequence[int], classes: Sequence[ClassInfo], void: int
) -> str | None:
    """Say which number contradicts its colour; None if none does.

    A palette of greys alone stands for a greyscale image, one of the class list's colours (and
    black) alone for a coloured one: either must say what the numbers say. Any other palette is
    decoration, in which only a class's own colour, or VOC's void, has a meaning.
    `palette`: red, green and blue of each number. `classes`: empty if the numbers are no class ids.
    """
    values = iter(palette)
    colors: list[Color] = list(zip(values, values, values, strict=False))
    known = _unique(classes)
    readings: list[dict[Color, int]] = []
    if all(red == green == blue for red, green, blue in colors):
        readings.append({color: color[0] for color in colors})
    if known and all(color in known or color == _BLACK for color in colors):
        readings.append({_BLACK: void} | known)
    if not readings:
        readings.append({_VOC_VOID: void} | known)
    used = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist()
    shown = {number: colors[number] for number in used if number < len(colors)}
    wrong = [_first_wrong(shown, reading) for reading in readings]
    if None in wrong:
        return None
    number, meant = next(one for one in wrong if one is not None)
    name = f", class {classes[meant].name!r}" if meant < len(classes) else ""
    name = ", void" if meant == void else name
    return f"its number {number} is shown as {shown[number]}, which means {meant}{name}"


def _unique(classes: Sequence[ClassInfo]) -> dict[Color, int]:
    """Map colours to ids, without those that two classes share."""
    ids: dict[Color, int] = {}
    shared = set()
    for info in classes:
        red, green, blue = info.color
        shared |= {(red, green, blue)} & set(ids)
        ids[red, green, blue] = info.id
    return {color: number for color, number in ids.items() if color not in shared}


def _first_wrong(
    shown: Mapping[int, Color], reading: Mapping[Color, int]
) -> tuple[int, int] | None:
    """Find the first number whose colour means another one, with that one."""
    for number, color in shown.items():
        meant = reading.get(color, number)
        if meant != number:
            return number, meant
    return None
