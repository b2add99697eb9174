"""Draws the plot of docs/results/peers.md: each server's shares of the bare limit, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from bench.peers.contenders import OURS

BARS = (
    ("1 connection", "#9ecae1", "closed", "1"),
    ("8", "#4292c6", "closed", "8"),
    ("32", "#08519c", "closed", "32"),
    ("goodput at 2x", "#fdae6b", "open", "2.0"),
    ("goodput at 3x", "#d94801", "open", "3.0"),
)
"""Each bar: what it shows, its colour, and where the row has it."""


def svg(rows: Sequence[dict[str, Any]]) -> str:
    """Draws images/s at 1, 8, 32 connections and goodput at 2x, 3x; the limit is dashed."""
    limit = 1.0
    values = [value_of(row, *bar[2:]) or 0.0 for row in rows for bar in BARS]
    scale = 200 / max([limit, *values, 1.0])
    width = 60 + 110 * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 300" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="300" fill="#fff"/>',
    ]
    for index, (name, color, _, _) in enumerate(BARS):
        x = 50 + 105 * index
        parts.append(f'<rect x="{x}" y="8" width="10" height="10" fill="{color}"/>')
        parts.append(f'<text x="{x + 14}" y="17">{escape(name)}</text>')
    for index, row in enumerate(rows):
        left = 55 + 110 * index
        for column, (_, color, load, key) in enumerate(BARS):
            value = value_of(row, load, key)
            if value is None:
                continue
            x, height = left + 19 * column, max(1.0, value * scale)
            parts.append(
                f'<rect x="{x}" y="{260 - height:.1f}" width="17" height="{height:.1f}" '
                f'fill="{color}"/>'
                f'<text x="{x + 8.5}" y="{256 - height:.1f}" text-anchor="middle" '
                f'font-size="8">{value:.2f}</text>'
            )
        bold = ' font-weight="bold"' if row["name"] == OURS.name else ""
        name = escape(row["title"])
        parts.append(f'<text x="{left + 47}" y="276" text-anchor="middle"{bold}>{name}</text>')
    y = 260 - limit * scale
    parts.append(
        f'<line x1="45" y1="{y:.1f}" x2="{width}" y2="{y:.1f}" stroke="#333" '
        f'stroke-dasharray="4 3"/><text x="4" y="{y - 3:.1f}">limit</text>'
        f'<line x1="45" y1="260" x2="{width}" y2="260" stroke="#333"/>'
        '<text x="4" y="264">0</text></svg>'
    )
    return "\n".join(parts) + "\n"


def value_of(row: dict[str, Any], load: str, key: str) -> float | None:
    """Gives the share of the limit that a bar shows; None if it was not measured."""
    found = row.get(load, {}).get(key)
    return None if found is None else float(found["of_limit"])
