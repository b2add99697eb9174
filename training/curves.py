"""Draws the learning curves of a run from the lines of its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

_SIZE = (480, 300)
"""(width, height) of one panel in pixels."""
_LEFT, _TOP, _RIGHT, _BOTTOM = 58, 30, 14, 36
_TICKS = 5
_INK, _GRID, _LINE = (40, 40, 40), (225, 225, 225), (30, 90, 180)

Points = Sequence[tuple[float, float]]


def draw_curves(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Write a PNG with the loss and the val mean IU over the iterations, one beside the other.

    `rows`: those of log.csv; a cell that is empty is left out.
    """
    panels = [_panel(title, _points(rows, column)) for title, column in _PANELS]
    sheet = Image.new("RGB", (_SIZE[0] * len(panels), _SIZE[1]), "white")
    for index, panel in enumerate(panels):
        sheet.paste(panel, (index * _SIZE[0], 0))
    sheet.save(path)


_PANELS = (("loss, mean of each epoch", "loss"), ("mean IU on val", "val_mean_iu"))


def _points(rows: Sequence[Mapping[str, str]], column: str) -> Points:
    return [(float(row["iteration"]), float(row[column])) for row in rows if row.get(column)]


def _panel(title: str, points: Points) -> Image.Image:
    panel = Image.new("RGB", _SIZE, "white")
    draw = ImageDraw.Draw(panel)
    draw.text((_LEFT, 8), title, fill=_INK)
    if not points:
        draw.text((_LEFT, _SIZE[1] // 2), "nothing yet", fill=_INK)
        return panel
    right, bottom = _SIZE[0] - _RIGHT, _SIZE[1] - _BOTTOM
    last = points[-1][0]
    low, high = min(y for _x, y in points), max(y for _x, y in points)
    if low == high:
        low, high = low - 0.5, high + 0.5

    def place(x: float, y: float) -> tuple[float, float]:
        share = (y - low) / (high - low)
        return _LEFT + x / last * (right - _LEFT), bottom - share * (bottom - _TOP)

    for tick in range(_TICKS + 1):
        share = tick / _TICKS
        x, y = place(share * last, low + share * (high - low))
        draw.line([(_LEFT, y), (right, y)], fill=_GRID)
        draw.text((_LEFT - 6, y), f"{low + share * (high - low):.3g}", fill=_INK, anchor="rm")
        draw.text((x, bottom + 6), f"{share * last:.0f}", fill=_INK, anchor="ma")
    draw.text((right, _SIZE[1] - 14), "iteration", fill=_INK, anchor="ra")
    dots = [place(x, y) for x, y in points]
    draw.line(dots, fill=_LINE, width=2)
    for x, y in dots:
        draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=_LINE)
    return panel
