"""Implements `fcn serve`, the REST and gRPC server."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "serve the model repository over REST and gRPC"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each setting, so that neither list can drift from the other."""
    from service.settings import Settings, environment_name

    parser.description = (
        "Serve the models of a repository over REST and gRPC. Every flag is also an environment "
        "variable: --http-port is FCN_HTTP_PORT. Flags win."
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="serve nothing: try settings, keys, certificate, ports and each model, a line for "
        "each; exit code 1 if any of them would stop a start",
    )
    parser.add_argument(
        "--rules", type=Path, metavar="FILE", help="with --check: Prometheus rules to look at, too"
    )
    for name, field in Settings.model_fields.items():
        description = (field.description or "").replace("%", "%%")
        parser.add_argument(
            "--" + name.replace("_", "-"),
            dest=name,
            metavar="VALUE",
            default=argparse.SUPPRESS,
            help=f"{description} [{environment_name(name)}, default: {field.default}]",
        )


def run(args: argparse.Namespace) -> int:
    """Raises: SettingsError."""
    from service.settings import Settings, SettingsError, load_settings

    given = {name: value for name, value in vars(args).items() if name in Settings.model_fields}
    if args.rules is not None and not args.check:
        raise SettingsError("--rules is looked at with --check only: add it")
    if args.check:
        return _check(given, args.rules)
    settings = load_settings(given)
    from service.app import serve

    return serve(settings)


def _check(given: dict[str, object], rules: Path | None) -> int:
    from service.checks import Finding, check
    from service.settings import SettingsError, load_settings

    failed = 0
    try:
        findings = check(load_settings(given), rules)
    except SettingsError as error:
        findings = iter([Finding("settings", False, str(error))])
    for finding in findings:
        failed += not finding.ok
        print(f"{'ok   ' if finding.ok else 'FAULT'} {finding.what}: {finding.text}", flush=True)
    print(f"fcn serve would not start: {failed} faults" if failed else "fcn serve would start")
    return 1 if failed else 0
