"""Implements `fcn doctor`, which tells what the server makes of this machine."""

from __future__ import annotations

import argparse

HELP = "tell what the server makes of this machine, and what would make it faster"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Print versions, processor, cores and memory as the cgroup gives them, GPU and driver, "
        "which engine and precision each model gets and why, and what would make it faster. "
        "Settings are those of the environment, as fcn serve takes them."
    )
    parser.add_argument("--json", action="store_true", help="write one JSON object")


def run(args: argparse.Namespace) -> int:
    """Raises: SettingsError."""
    import json

    from service.doctor import facts
    from service.settings import load_settings

    found = list(facts(load_settings()))
    if args.json:
        table: dict[str, object] = {what: text for what, text in found if what != "advice"}
        print(json.dumps({**table, "advice": [text for what, text in found if what == "advice"]}))
        return 0
    for what, text in found:
        print(f"{what + ':':<10} {text}")
    return 0
