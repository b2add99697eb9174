"""Puts slots together, and writes the table and the plot of docs/results/peers.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import generator
from bench.peers.contenders import CONTENDERS, LIMIT
from bench.peers.plot import svg

Result = dict[str, Any]
"""Holds what `bench.peers.slots` measured."""
BEGIN, END = "<!-- bench.peers {file} -->", "<!-- end of bench.peers {file} -->"
"""Around the table of one of a model's files on the page."""
LOADS = ("0.7", "2.0", "3.0")
PLOT = "performance-{precision}.svg"


class Slot(NamedTuple):
    """Names a part of the run: one server's turn in one round."""

    round: int
    part: str
    name: str

    def __str__(self) -> str:
        title = "the bare limit" if self.name == LIMIT else CONTENDERS[self.name].title
        return f"{title}, {self.part} of round {self.round + 1}"


def collect(
    settings: dict[str, Any],
    finished: Mapping[Slot, Result],
    errors: dict[str, str],
    names: Sequence[str],
) -> dict[str, Any]:
    """Takes medians over the rounds; latencies of the open loops are pooled before percentiles."""

    def results(name: str, part: str) -> list[Result]:
        return [
            found
            for slot, found in finished.items()
            if (slot.name, slot.part) == (name, part) and "error" not in found
        ]

    limits = results(LIMIT, "limit")
    ways = [
        {
            "engine": one[0].get("engine", "onnxruntime"),
            "precision": one[0].get("precision", settings["precision"]),
            "loops": one[0]["loops"],
            "threads": one[0]["threads"],
            "images_per_s": median(way["images_per_s"] for way in one),
            "p50_ms": median(way["latency"]["p50_ms"] for way in one),
            "each_round": [way["images_per_s"] for way in one],
        }
        for one in zip(*(each["ways"] for each in limits), strict=True)
    ]
    servers = []
    for name in names:
        row: dict[str, Any] = {"name": name, "title": CONTENDERS[name].title}
        if name in errors:
            row["error"] = errors[name]
        for choice in results(name, "variants"):
            row["variant"] = choice["words"]
            row["variants"] = {
                each["words"]: each.get("images_per_s", each.get("error"))
                for each in choice["rows"]
            }
        row |= server(results(name, "steady"), results(name, "overload"))
        row["overload_bound"] = CONTENDERS[name].overload or "none"
        servers.append(row)
    limit = max((way["images_per_s"] for way in ways), default=0.0)
    return {
        **settings,
        "limit": {"images_per_s": limit, "ways": ways},
        "servers": servers,
    }


def server(steady: Sequence[Result], overload: Sequence[Result]) -> dict[str, Any]:
    row: dict[str, Any] = {"closed": {}, "open": {}}
    if steady:
        row |= {
            "version": steady[0]["version"],
            "labels_equal": all(each["labels_equal"] for each in steady),
            "start_s": median(each["start_s"] for each in steady),
            "memory_mib": median(each["memory_mib"] for each in steady),
        }
    if overload:
        row["memory_overload_mib"] = median(each["memory_mib"] for each in overload)
        row["admits"] = overload[0]["bound"]
    for kind, rate in (("closed", "answered_per_s"), ("open", "goodput_per_s")):
        for slots in (steady, overload):
            for load in slots[0].get(kind, ()) if slots else ():
                limits = [statistics.mean(each["limits_per_s"]) for each in slots]
                row[kind][load] = pooled([each[kind][load] for each in slots], rate, limits)
    return row


def pooled(rounds: Sequence[Result], rate: str, limits: Sequence[float]) -> dict[str, Any]:
    """Puts a load's rounds together. `of_limit`: each round's rate beside its own limit."""
    found = generator.without_lists(generator.pooled(rounds))
    if "recovery_s" in rounds[0]:
        found["recovery_s"] = max(each["recovery_s"] for each in rounds)
    found["each_round"] = [each[rate] for each in rounds]
    found["limit_each_round"] = list(limits)
    shares = [one / limit for one, limit in zip(found["each_round"], limits, strict=True)]
    found["of_limit"] = round(statistics.median(shares), 3)
    return found


def median(values: Any) -> Any:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 2) if known else None


def table(measured: dict[str, Any]) -> str:
    """Writes two Markdown tables: everyday load, and overload."""
    limit = measured["limit"]["images_per_s"]
    rows = measured["servers"]
    lines = [
        "| server | set up as | images/s at 1 / 8 / 32 connections | of the limit "
        "| p50 at 1 | p99 at 8 | p50 / p99 at 0.7x | memory | start |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for way in measured["limit"]["ways"]:
        loops = f"{way['loops']} loop{'s'[: way['loops'] > 1]}"
        # The tables of 2026-11-24 had the limit of the servers' own engine and precision alone.
        title = " ".join(("bare limit", way.get("engine", ""), way.get("precision", ""))).strip()
        lines.append(
            f"| {title} | {loops} x {way['threads']} thread{'s'[: way['threads'] > 1]} "
            f"| {way['images_per_s']:.1f} | {share(way['images_per_s'], limit)} "
            f"| {way['p50_ms']:.0f} ms | | | | |"
        )
    for row in rows:
        if "error" in row or not row.get("closed"):
            lines.append(f"| {row['title']} | {row.get('error', 'not measured')} | | | | | | | |")
            continue
        loads = row["closed"]
        differs = "" if row["labels_equal"] else " (**other labels**)"
        calm = row["open"].get("0.7", {}).get("latency", {})
        lines.append(
            f"| {row['title']} {row['version']}{differs} | {row.get('variant', 'its defaults')} | "
            + " / ".join(f"{each['answered_per_s']:.1f}" for each in loads.values())
            + " | "
            + " / ".join(f"{each['of_limit']:.2f}" for each in loads.values())
            + f" | {ms(loads['1']['latency']['p50_ms'])} | {ms(loads['8']['latency']['p99_ms'])} "
            f"| {ms(calm.get('p50_ms'))} / {ms(calm.get('p99_ms'))} "
            f"| {row['memory_mib']:.0f} MiB | {row['start_s']:.1f} s |"
        )
    lines += [
        "",
        "| server | bounded by | goodput at 2x / 3x | of the limit | p50 / p99 at 2x "
        "| p50 / p99 at 3x | refused / expired at 3x | refusal p50 / p99 at 3x | recovery "
        "| generator at 0.7x / 2x / 3x |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        two, three = (row["open"].get(factor) for factor in ("2.0", "3.0"))
        if two is None or three is None:
            continue
        offered = three["answered"] + sum(
            three[name] for name in ("refused", "expired", "hung_up", "other_errors")
        )
        good = (two["goodput_per_s"], three["goodput_per_s"])
        lines.append(
            f"| {row['title']} | {row['overload_bound']} | {good[0]:.1f} / {good[1]:.1f} /s "
            f"| {two['of_limit']:.2f} / {three['of_limit']:.2f} "
            f"| {ms(two['latency']['p50_ms'])} / {ms(two['latency']['p99_ms'])} "
            f"| {ms(three['latency']['p50_ms'])} / {ms(three['latency']['p99_ms'])} "
            f"| {100 * three['refused'] / max(1, offered):.0f} % "
            f"/ {100 * three['expired'] / max(1, offered):.0f} % "
            f"| {ms(three['refusal']['p50_ms'])} / {ms(three['refusal']['p99_ms'])} "
            f"| {max(two['recovery_s'], three['recovery_s']):.1f} s "
            f"| {' / '.join(share_of_cores(row['open'].get(load)) for load in LOADS)} |"
        )
    return "\n".join(lines)


def share_of_cores(load: dict[str, Any] | None) -> str:
    """Writes the percent of all cores that the load generator took; a dash if it was not said."""
    share = (load or {}).get("generator_share")
    return "-" if share is None else f"{100 * share:.1f} %"


def share(value: float, limit: float) -> str:
    return f"{value / limit:.2f}" if limit else "-"


def ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def write_page(page: Path, measured: dict[str, Any]) -> None:
    """Writes the table between the two marks of the page, and the plot beside it.

    Raises: ValueError.
    """
    text = page.read_text()
    begin, end = (mark.format(file=measured["file"]) for mark in (BEGIN, END))
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{page} needs the lines {begin} and {end}, once each")
    before, after = text.split(begin)[0], text.split(end)[1]
    plot_file = PLOT.format(precision=measured["precision"])
    versions = measured["versions"]
    said = (
        f"{measured['date'][:10]}, revision {measured['revision']}: {measured['machine']['cpu']}, "
        f"{measured['machine']['cores']} cores, {measured['machine']['memory_gib']} GiB; "
        f"Python {measured['machine']['python']}, onnxruntime {versions['onnxruntime']}, "
        f"Pillow {versions['pillow']}; {measured['model']}, {measured['file']}, "
        f"{measured['image']}; "
        f"{measured['rounds']} rounds; closed loops of {measured['closed_loop_s']:g} s, open loops "
        f"of {measured['open_loop_s']:g} s; the load generator runs on the same cores, "
        "with the share in the last column."
    )
    page.write_text(
        f"{before}{begin}\n{said}\n\n{table(measured)}\n\n"
        f"![Images per second and goodput of each server, of the bare limit]({plot_file})\n"
        f"{end}{after}"
    )
    (page.parent / plot_file).write_text(svg(measured["servers"]))
