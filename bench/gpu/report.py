"""The JSON of a run, written after every row, and what it says as tables."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import record

Row = dict[str, Any]


class Result:
    """Parts by name, each a mapping; those of an earlier run stay until they are measured anew."""

    def __init__(self, path: Path, head: dict[str, Any], fresh: bool) -> None:
        """`head`: what is true of the whole run, such as the device. A file of another device or
        another size of run is not gone on with."""
        self.path, self.head = path, head
        self.parts: dict[str, Any] = {}
        if not fresh and path.is_file():
            earlier = json.loads(path.read_text())
            if all(earlier.get(name) == head[name] for name in ("device_name", "quick")):
                self.parts = earlier["parts"]

    def rows(self, part: str) -> list[Row]:
        rows: list[Row] = self.parts.setdefault(part, {}).setdefault("rows", [])
        return rows

    def has(self, part: str, key: Mapping[str, Any]) -> bool:
        return any(all(row.get(k) == v for k, v in key.items()) for row in self.rows(part))

    def add(self, part: str, row: Row) -> None:
        self.rows(part).append(row)
        self.write()

    def set(self, part: str, **values: Any) -> None:
        self.parts.setdefault(part, {}).update(values)
        self.write()

    def write(self) -> None:
        record.write(self.path, {**self.head, "parts": self.parts}, announce=False)


@dataclass(frozen=True, slots=True)
class Budget:
    """Time until which a part may begin something new. `clock`: seconds."""

    until_s: float
    clock: Callable[[], float] = time.monotonic

    @staticmethod
    def of(seconds: float, clock: Callable[[], float] = time.monotonic) -> Budget:
        return Budget(clock() + seconds, clock)

    @property
    def left_s(self) -> float:
        return max(0.0, self.until_s - self.clock())

    def share(self, of: int) -> Budget:
        """One of so many equal parts of what is left."""
        return Budget.of(self.left_s / max(1, of), self.clock)


def tables(parts: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown."""
    if rows := parts.get("latency", {}).get("rows"):
        yield from ("", "| network | size | batch | in | p50 | p99 | images/s | of the peak |")
        yield "|---|---|---|---|---|---|---|---|"
        for row in rows:
            for name, got in row["contenders"].items():
                share = got.get("of_peak")
                yield (
                    f"| {row['network']} | {row['size'][0]}x{row['size'][1]} | {row['batch']} "
                    f"| {name} | {got['p50_ms']:.2f} ms | {got['p99_ms']:.2f} ms "
                    f"| {got['images_per_s']:.0f} | {'-' if share is None else f'{share:.1%}'} |"
                )
    if rows := parts.get("torch", {}).get("rows"):
        yield from ("", "| network | size | batch | ONNX Runtime | eager | torch.compile |")
        yield "|---|---|---|---|---|---|"
        for row in rows:
            speeds = [_speed(row["contenders"].get(n)) for n in ("onnxruntime", "eager", "compile")]
            yield (
                f"| {row['network']} | {row['size'][0]}x{row['size'][1]} | {row['batch']} | "
                + " | ".join(speeds)
                + " |"
            )
    if rows := parts.get("end_to_end", {}).get("rows"):
        yield from ("", "| network | over | load | images/s | of the session | p50 | p99 | busy |")
        yield "|---|---|---|---|---|---|---|---|"
        for row in rows:
            busy = row["device_busy"]
            yield (
                f"| {row['network']} | {row['transport']} | {row['load']} "
                f"| {row['answered_per_s']:.1f} | {row['of_session']:.2f} "
                f"| {_ms(row['latency']['p50_ms'])} | {_ms(row['latency']['p99_ms'])} "
                f"| {'-' if busy is None else f'{busy:.0%}'} |"
            )


def _speed(got: Row | None) -> str:
    return "-" if got is None else f"{got['images_per_s']:.0f}/s, {got['p50_ms']:.2f} ms"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
