"""Reckons what so many images a day need, from a table that the reader may change."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from cli._simulation import BALANCERS, Replica, p99_s, replicas_for
from fcn_client.errors import InvalidInput

_DAY_S: Final = 86400
_MONTH_DAYS: Final = 30

Table = Mapping[str, Mapping[str, Any]]


def load_table(path: Path | None) -> Table:
    """Reads the table, what it lacks from ours. Raises: InvalidInput."""
    own = (files("cli") / "scale.toml").read_text(encoding="utf-8")
    table: dict[str, dict[str, Any]] = tomllib.loads(own)
    if path is None:
        return table
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidInput(f"{path} is no TOML: {error}") from error
    for section, values in given.items():
        if section not in table or not isinstance(values, dict):
            raise InvalidInput(f"{path}: there is no [{section}]: use {', '.join(table)}")
        for name, value in values.items():
            if section != "reply_kb" and name not in table[section]:
                raise InvalidInput(
                    f"{path}: [{section}] has no {name}: use {', '.join(table[section])}"
                )
            several = name == "service_ms"
            numbers = value if several and isinstance(value, list) else [value]
            if not numbers or not all(_fits(n, section, name) for n in numbers):
                raise InvalidInput(
                    f"{path}: {name} of [{section}] is {value!r}: give "
                    + ("numbers above 0, the least first" if several else "a number, 0 or more")
                )
            if several and numbers != sorted(numbers):
                raise InvalidInput(f"{path}: service_ms is not in order: the least first")
            table[section][name] = value
    return table


def _fits(value: object, section: str, name: str) -> bool:
    may_be_zero = section in ("gpu", "store", "price", "reply_kb") or name == "spare"
    whole = name in ("slots", "spare")
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and (value > 0 or (may_be_zero and value == 0))  # type: ignore[arg-type,operator]


def reckon(table: Table, images_per_day: float, image_kb: float, output: str) -> dict[str, Any]:
    """Returns every number, by what it is called in the report. Raises: InvalidInput."""
    if not (0 < images_per_day < math.inf and 0 < image_kb < math.inf):
        raise InvalidInput("images a day and kB of an image: give numbers above 0")
    if output not in table["reply_kb"]:
        known = ", ".join(table["reply_kb"])
        raise InvalidInput(f"[reply_kb] has no {output!r}: use {known}, or add it")
    load, one = table["load"], table["replica"]
    replica = Replica(int(one["slots"]), one["service_ms"])
    mean = images_per_day / _DAY_S
    rate, target_s = mean * load["peak"], load["target_ms"] / 1000
    balancers: dict[str, Any] = {}
    enough = math.ceil(rate / (replica.images_per_s * load["most_busy"]))
    for balancer in BALANCERS:
        count = replicas_for(replica, rate, target_s, balancer)
        if count is None:
            raise InvalidInput(
                f"one image alone takes up to {max(one['service_ms']):g} ms, and target_ms is "
                f"{load['target_ms']:g}: a smaller network, larger replicas, or a later target"
            )
        count = max(count, enough)
        balancers[balancer] = {
            "replicas": count,
            "p99_ms": round(1000 * p99_s(replica, count, rate, balancer), 1),
            "busy": round(rate / count / replica.images_per_s, 3),
        }
    replicas = balancers["least-loaded"]["replicas"] + int(load["spare"])
    cores = replicas * one["cores"]
    reply_kb = table["reply_kb"][output]
    network, price = table["network"], table["price"]
    nodes = math.ceil(cores / network["node_cores"])
    gbit = {way: rate * kb * 8e-6 for way, kb in (("in", image_kb), ("out", reply_kb))}
    stored_gb = images_per_day * (image_kb + reply_kb) * 1e-6 * table["store"]["days"]
    cost = {
        "cores": cores * 24 * price["core_hour"],
        "egress": images_per_day * reply_kb * 1e-6 * price["egress_gb"],
        "storage": stored_gb * price["storage_gb_month"] / _MONTH_DAYS,
    }
    found: dict[str, Any] = {
        "images_per_s": {"mean": mean, "peak": rate},
        "balancers": balancers,
        "replica_images_per_s": replica.images_per_s,
        "replicas": replicas,
        "cores": cores,
        "memory_gib": replicas * one["memory_gib"],
        "nodes": nodes,
        "gbit_per_s": gbit,
        "node_network_busy": max(gbit.values()) / nodes / network["node_gbit"],
        "stored_gb": stored_gb,
        "price_per_day": cost,
        "price_per_million": sum(cost.values()) / images_per_day * 1e6,
    }
    if table["gpu"]["images_per_s"]:
        gpus = math.ceil(rate / table["gpu"]["images_per_s"]) + int(load["spare"])
        hour = gpus * (price["gpu_hour"] + table["gpu"]["cores"] * price["core_hour"])
        rest = cost["egress"] + cost["storage"]
        found["gpus"] = gpus
        found["gpu_price_per_million"] = (24 * hour + rest) / images_per_day * 1e6
    return found


def lines(found: Mapping[str, Any], target_ms: float) -> Iterator[str]:
    """Yields the report."""
    per_s, gbit, cost = found["images_per_s"], found["gbit_per_s"], found["price_per_day"]
    yield f"load:        {per_s['mean']:,.1f} images/s, {per_s['peak']:,.1f} in the busiest minute"
    for name, row in found["balancers"].items():
        yield (
            f"{name + ':':<13}{row['replicas']:>7,} replicas, {row['busy']:.0%} busy, "
            f"p99 {row['p99_ms']:g} ms of {target_ms:g} (simulated)"
        )
    yield (
        f"run:         {found['replicas']:,} replicas, least-loaded, with the spare: "
        f"{found['cores']:,g} cores, {found['memory_gib']:,g} GiB, {found['nodes']:,} nodes"
    )
    if "gpus" in found:
        yield (
            f"or:          {found['gpus']:,} GPUs, queues on them not simulated, "
            f"{found['gpu_price_per_million']:,.2f} per million images"
        )
    yield (
        f"network:     {gbit['in']:,.3f} Gbit/s in, {gbit['out']:,.3f} out, "
        f"{found['node_network_busy']:.1%} of what the nodes have"
    )
    yield f"storage:     {found['stored_gb']:,.0f} GB"
    parts = ", ".join(f"{name} {value:,.2f}" for name, value in cost.items())
    yield (
        f"price:       {found['price_per_million']:,.2f} per million images; a day: {parts} "
        "(assumed prices, unless the table is yours)"
    )
