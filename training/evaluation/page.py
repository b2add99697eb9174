"""Writes an evaluation as one HTML page that needs nothing else, neither files nor addresses."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from model.contract import palette_of
from training.datasets.base import VOID, UInt8Array
from training.evaluation.audit import Audit, ImageCounts, Interval
from training.evaluation.report import Report

_SHOWN = 4
"""Worst images, and as many from the middle."""
_WIDTH_PX = 480
_CELL_PX, _MARGIN_PX = 44, 130
_RIGHT, _WRONG = (215, 235, 215), (200, 30, 30)

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1500px;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;text-align:right}
td:first-child,th:first-child{text-align:left}tr:nth-child(even){background:#f5f5f5}
.bar{display:inline-block;height:.8em;background:#3a6fb0;vertical-align:middle}
.dot{display:inline-block;width:.8em;height:.8em;border:1px solid #888;margin-right:.4em}
figure{margin:1em 0}figure img{max-width:32%;margin-right:.5%}figcaption{color:#555}
"""

Predict = Callable[[int], UInt8Array]


def write_page(folder: Path, report: Report, audit: Audit, predict: Predict) -> Path:
    """Write `folder`/index.html: scores with their intervals, the confusion matrix, IU per class,
    the worst and the median images, and timing.

    `predict`: the index of an image in the report's data -> its label map.
    """
    metrics, by_class = audit.intervals()
    title = f"{report.source} on {report.data.info.data.name}, {report.data.split}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(_summary(report))}</p>",
        "<h2>Scores</h2>",
        "<p>In percent; in brackets the 95 % interval of a bootstrap over the images.</p>",
        _metrics_table(report, metrics),
        "<h2>Classes</h2>",
        _class_table(report, by_class),
        "<h2>Confusion matrix</h2>",
        "<p>Rows are the labels, columns the predictions; percent of each row's pixels.</p>",
        _img(_confusion(report), "confusion matrix"),
        "<h2>Time</h2>",
        f"<p>{escape(_timing(report, audit))}</p>",
    ]
    for name, chosen in (("Worst", audit.worst(_SHOWN)), ("Median", audit.median(_SHOWN))):
        parts.append(f"<h2>{name} images</h2>")
        parts.append("<p>Image, prediction over it, and errors in red (void is grey).</p>")
        parts += [_figure(report, counts, predict) for counts in chosen]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style>{''.join(parts)}</html>"
    )
    path.write_text(page, encoding="utf-8")
    return path


def _summary(report: Report) -> str:
    flip = ", each also mirrored, the probabilities averaged" if report.flip else ""
    masked = "" if report.mask == "all" else f", {report.mask} alone"
    return (
        f"{report.evaluation.images} images at their own size, one scale{flip}{masked}; void left "
        f"out; {len(report.evaluation.failures)} failed. Written "
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC. Data: {report.data.info.data.licence}."
    )


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f}"


def _with_interval(value: float, interval: Interval) -> str:
    low, high = map(_percent, interval)
    return f"<td>{_percent(value)}</td><td>[{low}, {high}]</td>"


def _metrics_table(report: Report, intervals: dict[str, Interval]) -> str:
    rows = (
        f"<tr><td>{escape(name)}</td>{_with_interval(value, intervals[name])}</tr>"
        for name, value in report.metrics.items()
        if name in intervals
    )
    return f"<table>{''.join(rows)}</table>"


def _class_table(report: Report, intervals: Sequence[Interval]) -> str:
    scores, shares = report.confusion.scores(report.absent), report.confusion.class_shares()
    rows = []
    for info, iu, share, interval in zip(
        report.data.info.classes, scores.class_iu, shares, intervals, strict=True
    ):
        width = 0 if np.isnan(iu) else 200 * iu
        dot = f'<span class="dot" style="background:rgb{tuple(info.color)}"></span>'
        rows.append(
            f"<tr><td>{dot}{escape(info.name)}</td>{_with_interval(iu, interval)}"
            f'<td style="text-align:left"><span class="bar" style="width:{width:.0f}px"></span>'
            f"</td><td>{_percent(share)}</td></tr>"
        )
    head = "<tr><th>class</th><th>IU</th><th>95 %</th><th></th><th>share of pixels</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _confusion(report: Report) -> Image.Image:
    """Draw the first head's matrix, each row in shares of its label's pixels."""
    names = [info.name for info in report.data.info.classes]
    counts = report.confusion.of(next(iter(report.data.info.heads))).counts
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = _MARGIN_PX + _CELL_PX * len(names)
    drawn = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(drawn)
    for row, name in enumerate(names):
        at = _MARGIN_PX + _CELL_PX * row
        draw.text((_MARGIN_PX - 6, at + _CELL_PX / 2), name, fill="black", anchor="rm")
        upright = Image.new("RGB", (_MARGIN_PX - 6, 14), "white")
        ImageDraw.Draw(upright).text((0, 0), name, fill="black")
        drawn.paste(upright.rotate(90, expand=True), (at + _CELL_PX // 2 - 7, 0))
        for column in range(len(names)):
            share = float(shares[row, column])
            left = _MARGIN_PX + _CELL_PX * column
            shade = round(255 * (1 - share))
            draw.rectangle(
                [left, at, left + _CELL_PX - 1, at + _CELL_PX - 1], fill=(shade, shade, 255)
            )
            ink = "white" if share > 0.5 else "black"
            middle = (left + _CELL_PX / 2, at + _CELL_PX / 2)
            if share >= 0.0005:
                draw.text(middle, f"{100 * share:.1f}", fill=ink, anchor="mm")
    return drawn


def _timing(report: Report, audit: Audit) -> str:
    seconds = np.array([image.seconds for image in audit.images])
    median, slow = np.percentile(seconds, [50, 95])
    return (
        f"{report.evaluation.images / max(report.seconds, 1e-9):.1f} images a second, files read "
        f"and compared; the prediction alone {1e3 * median:.1f} ms (median), {1e3 * slow:.1f} ms "
        "(95th percentile)."
    )


def _figure(report: Report, counts: ImageCounts, predict: Predict) -> str:
    sample, prediction = report.data[counts.index], predict(counts.index)
    target = sample.target
    if target.ndim == 3:
        target, prediction = target[..., 0], prediction[..., 0]
    image = sample.image[..., :3].astype(np.uint8)
    shown = palette_of(report.data.info.classes)[prediction]
    overlay = (image.astype(np.uint16) + shown) // 2
    errors = np.full_like(image, 128)
    errors[target != VOID] = _RIGHT
    errors[(target != VOID) & (target != prediction)] = _WRONG
    name = report.data.pairs[counts.index][0].name
    panels = (_small(each) for each in (image, overlay.astype(np.uint8), errors))
    images = "".join(_img(panel, name, "JPEG") for panel in panels)
    return (
        f"<figure>{images}<figcaption>{escape(name)}: mean IU of its classes "
        f"{_percent(counts.mean_iu)}</figcaption></figure>"
    )


def _small(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    drawn = Image.fromarray(pixels)
    drawn.thumbnail((_WIDTH_PX, _WIDTH_PX))
    return drawn


def _img(drawn: Image.Image, name: str, form: str = "PNG") -> str:
    body = io.BytesIO()
    drawn.save(body, form, quality=90)
    data = base64.b64encode(body.getvalue()).decode()
    return f'<img alt="{escape(name)}" src="data:image/{form.lower()};base64,{data}">'
