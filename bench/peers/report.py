"""Puts slots together, and writes the table and the plot of docs/results/peers.md."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import generator
from bench.peers.contenders import CONTENDERS, LIMIT
from bench.peers.plot import svg

Slot = dict[str, Any]
BEGIN, END = "<!-- bench.peers {file} -->", "<!-- end of bench.peers {file} -->"
"""Around the table of one of a model's files on the page."""
LOADS = ("0.7", "2.0", "3.0")
PLOT = "performance-{precision}.svg"


def collect(
    settings: dict[str, Any],
    plan: Sequence[Slot],
    done: Callable[[Slot], Slot | None],
    errors: dict[str, str],
    names: Sequence[str],
) -> dict[str, Any]:
    """Takes medians over the rounds; latencies of the open loops are pooled before percentiles."""
    found = [(slot, result) for slot in plan if (result := done(slot)) and "error" not in result]

    def results(name: str, part: str) -> list[Slot]:
        return [result for slot, result in found if (slot["name"], slot["part"]) == (name, part)]

    limits = results(LIMIT, "limit")
    ways = [
        {
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


def server(steady: Sequence[Slot], overload: Sequence[Slot]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if steady:
        row |= {
            "version": steady[0]["version"],
            "labels_equal": all(each["labels_equal"] for each in steady),
            "start_s": median(each["start_s"] for each in steady),
            "memory_mib": median(each["memory_mib"] for each in steady),
            "closed": {
                connections: closed(
                    [each["closed"][connections] for each in steady], limits_of(steady)
                )
                for connections in steady[0]["closed"]
            },
        }
    loads = [*steady, *overload]
    factors = sorted({factor for each in loads for factor in each["open"]}, key=float)
    row["open"] = {}
    for factor in factors:
        with_it = [each for each in loads if factor in each["open"]]
        row["open"][factor] = pooled([each["open"][factor] for each in with_it], limits_of(with_it))
    if overload:
        row["memory_overload_mib"] = median(each["memory_mib"] for each in overload)
        row["admits"] = overload[0]["bound"]
    return row


def limits_of(slots: Sequence[Slot]) -> list[float]:
    """Gives the images per second of the bare limit around each slot."""
    return [statistics.mean(each["limits_per_s"]) for each in slots]


def closed(rounds: Sequence[dict[str, Any]], limits: Sequence[float]) -> dict[str, Any]:
    names = ("images_per_s", "p50_ms", "p95_ms", "p99_ms")
    found: dict[str, Any] = {name: median(each[name] for each in rounds) for name in names}
    found["refused_or_broken"] = sum(each["refused"] + each["broken"] for each in rounds)
    found["each_round"] = [each["images_per_s"] for each in rounds]
    found["limit_each_round"] = list(limits)
    found["of_limit"] = of_limit(found["each_round"], limits)
    return found


def of_limit(rates: Sequence[float], limits: Sequence[float]) -> float:
    """Takes the median over the rounds, each beside its own limit."""
    return round(statistics.median(a / b for a, b in zip(rates, limits, strict=True)), 3)


def pooled(rounds: Sequence[dict[str, Any]], limits: Sequence[float]) -> dict[str, Any]:
    found = generator.without_lists(generator.pooled(rounds))
    # Medians of each round's: in a fast round a server refuses fewer.
    found["refusal_p50_ms"] = median(each["refusal"]["p50_ms"] for each in rounds)
    found["refusal_p99_ms"] = median(each["refusal"]["p99_ms"] for each in rounds)
    if "recovery_s" in rounds[0]:
        found["recovery_s"] = max(each["recovery_s"] for each in rounds)
    found["each_round_goodput"] = [each["goodput_per_s"] for each in rounds]
    found["limit_each_round"] = list(limits)
    found["of_limit"] = of_limit(found["each_round_goodput"], limits)
    return found


def median(values: Any) -> Any:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 2) if known else None


def table(measured: dict[str, Any]) -> str:
    """Writes two Markdown tables: everyday load, and overload."""
    limit = measured["limit"]["images_per_s"]
    # Keys that went through JSON are strings.
    rows = [normal(row) for row in measured["servers"]]
    lines = [
        "| server | set up as | images/s at 1 / 8 / 32 connections | of the limit "
        "| p50 at 1 | p99 at 8 | p50 / p99 at 0.7x | memory | start |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for way in measured["limit"]["ways"]:
        loops = f"{way['loops']} loop{'s'[: way['loops'] > 1]}"
        lines.append(
            f"| bare limit | {loops} x {way['threads']} thread{'s'[: way['threads'] > 1]} "
            f"| {way['images_per_s']:.1f} | {share(way['images_per_s'], limit)} "
            f"| {way['p50_ms']:.0f} ms | | | | |"
        )
    for row in rows:
        if "error" in row or "closed" not in row:
            lines.append(f"| {row['title']} | {row.get('error', 'not measured')} | | | | | | | |")
            continue
        loads = row["closed"]
        differs = "" if row["labels_equal"] else " (**other labels**)"
        calm = row["open"].get("0.7", {}).get("latency", {})
        lines.append(
            f"| {row['title']} {row['version']}{differs} | {row.get('variant', 'its defaults')} | "
            + " / ".join(f"{each['images_per_s']:.1f}" for each in loads.values())
            + " | "
            + " / ".join(f"{each['of_limit']:.2f}" for each in loads.values())
            + f" | {ms(loads['1']['p50_ms'])} | {ms(loads['8']['p99_ms'])} "
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
            f"| {ms(three['refusal_p50_ms'])} / {ms(three['refusal_p99_ms'])} "
            f"| {max(two['recovery_s'], three['recovery_s']):.1f} s "
            f"| {' / '.join(share_of_cores(row['open'].get(load)) for load in LOADS)} |"
        )
    return "\n".join(lines)


def normal(row: dict[str, Any]) -> dict[str, Any]:
    """Makes the keys of `closed` and `open` strings, as they are after JSON."""
    return {
        name: {str(key): inner for key, inner in value.items()}
        if name in ("closed", "open")
        else value
        for name, value in row.items()
    }


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
    (page.parent / plot_file).write_text(svg([normal(row) for row in measured["servers"]]))
