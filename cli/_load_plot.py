"""Draws what became of a load: when each answer came, and what share came within which time.

With Pillow, which the client brings: a plotting library would be an extra for this alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from cli._load import Answer

SIZE: Final = (1200, 460)
"""(width, height) of the file."""
_FINE: Final = 2
"""Drawn so much larger and then reduced, which makes edges smooth."""
_INK, _GRID = "#222222", "#dddddd"
# Told apart by those who see no red or no green, too. Source: Okabe and Ito, 2008.
_GOOD, _LATE, _FAILED = "#0072b2", "#e69f00", "#cc3311"


@dataclass(frozen=True, slots=True)
class _Axes:
    """Maps values to pixels. box: left, top, right and bottom."""

    draw: ImageDraw.ImageDraw
    box: tuple[int, int, int, int]
    x_most: float
    y_most: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (
            left + (right - left) * min(x / self.x_most, 1.0),
            bottom - (bottom - top) * min(y / self.y_most, 1.0),
        )

    def frame(self, title: str, x_label: str, y_label: str, y_text: Callable[[float], str]) -> None:
        """Draws grid, numbers and labels."""
        left, top, right, bottom = self.box
        for value in ticks(self.y_most):
            _, y = self.at(0, value)
            self.draw.line((left, y, right, y), _GRID, _FINE)
            self.text((left - 8 * _FINE, y), y_text(value), "rm")
        for value in ticks(self.x_most):
            x, _ = self.at(value, 0)
            self.draw.line((x, top, x, bottom), _GRID, _FINE)
            self.text((x, bottom + 6 * _FINE), f"{value:g}", "ma")
        self.draw.rectangle(self.box, outline=_INK, width=_FINE)
        self.text((left, top - 24 * _FINE), title, "lm", size=15)
        self.text(((left + right) / 2, bottom + 34 * _FINE), x_label, "mm")
        self.text((left, top - 8 * _FINE), y_label, "lm", size=11)

    def text(self, at: tuple[float, float], text: str, anchor: str, size: int = 13) -> None:
        font = ImageFont.load_default(size * _FINE)
        self.draw.text(at, text, _INK, font, anchor)

    def dot(self, x: float, y: float, color: str) -> None:
        """Draws a point, or, of what lies above the axes, a small triangle at their top."""
        px, py = self.at(x, y)
        r = 2.5 * _FINE
        if y > self.y_most:
            self.draw.polygon(((px - r, py + 2 * r), (px + r, py + 2 * r), (px, py)), color)
        else:
            self.draw.ellipse((px - r, py - r, px + r, py + r), color)

    def dashes(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        (x, y), (x_end, y_end) = self.at(*start), self.at(*end)
        length = math.hypot(x_end - x, y_end - y)
        for begin in range(0, int(length), 10 * _FINE):
            part = [min(at / length, 1.0) for at in (begin, begin + 6 * _FINE)]
            points = [(x + (x_end - x) * p, y + (y_end - y) * p) for p in part]
            self.draw.line(points, _INK, _FINE)


def write_plot(path: Path, answers: Sequence[Answer], target_s: float, title: str) -> None:
    """Writes a PNG. answers: those that are counted, in order. Raises: OSError."""
    image = Image.new("RGB", (SIZE[0] * _FINE, SIZE[1] * _FINE), "white")
    draw = ImageDraw.Draw(image)
    good = sorted(answer.latency_s * 1000 for answer in answers if not answer.error)
    target_ms = target_s * 1000
    # The slowest few of a hundred would press all others to the ground.
    slow_ms = 1.3 * good[int(0.98 * (len(good) - 1))] if good else 0.0
    most_ms = max(1.25 * target_ms, min(1.05 * good[-1], slow_ms) if good else 0.0)
    began_s = answers[0].due_s if answers else 0.0
    span_s = max((answer.due_s - began_s for answer in answers), default=0.0) or 1.0
    top, bottom = 80 * _FINE, (SIZE[1] - 56) * _FINE

    times = _Axes(draw, (64 * _FINE, top, 690 * _FINE, bottom), span_s, most_ms)
    times.frame("When it was sent, how long it took", "seconds", "ms", lambda ms: f"{ms:g}")
    for answer in answers:
        due_s, ms = answer.due_s - began_s, answer.latency_s * 1000
        if answer.error:
            x, y = times.at(due_s, 0)
            draw.line((x, y, x, y - 12 * _FINE), _FAILED, 2 * _FINE)
        else:
            times.dot(due_s, ms, _GOOD if ms <= target_ms else _LATE)
    times.dashes((0, target_ms), (span_s, target_ms))

    shares = _Axes(draw, (770 * _FINE, top, (SIZE[0] - 24) * _FINE, bottom), most_ms, 1.0)
    shares.frame("Share of all answered within", "ms", "", lambda share: f"{share:.0%}")
    if points := [shares.at(*point) for point in _steps(good, len(answers))]:
        draw.line(points, _GOOD, 2 * _FINE, joint="curve")
    shares.dashes((target_ms, 0), (target_ms, 1))

    times.text((24 * _FINE, 24 * _FINE), title, "lm", size=17)
    place = 450 * _FINE
    for color, what in ((_GOOD, "within the target"), (_LATE, "later"), (_FAILED, "no answer")):
        y = top - 24 * _FINE
        draw.rectangle((place, y - 4 * _FINE, place + 8 * _FINE, y + 4 * _FINE), color)
        times.text((place + 12 * _FINE, y), what, "lm", size=11)
        place += (32 + 6 * len(what)) * _FINE
    image.resize(SIZE, Image.Resampling.LANCZOS).save(path, "PNG", optimize=True)


def ticks(most: float) -> Iterator[float]:
    """Yields four to nine multiples of 1, 2 or 5 times a power of ten, from 0 to `most`."""
    step = 10.0 ** math.floor(math.log10(most / 4))
    step *= max(factor for factor in (1, 2, 5) if factor * step <= most / 4)
    for number in range(int(most / step + 1e-9) + 1):
        yield round(number * step, 9)


def _steps(good: Sequence[float], count: int) -> Iterator[tuple[float, float]]:
    """Yields the corners of the share of `count` that was answered within each time."""
    for number, ms in enumerate(good):
        yield ms, number / count
        yield ms, (number + 1) / count
