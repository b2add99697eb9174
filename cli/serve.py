"""Implements `fcn serve`, the REST and gRPC server."""

from __future__ import annotations

import argparse

HELP = "serve the model repository over REST and gRPC"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each setting, so that neither list can drift from the other."""
    from service.settings import Settings, environment_name

    parser.description = (
        "Serve the models of a repository over REST and gRPC. Every flag is also an environment "
        "variable: --http-port is FCN_HTTP_PORT. Flags win."
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
    from service.settings import Settings, load_settings

    given = {name: value for name, value in vars(args).items() if name in Settings.model_fields}
    settings = load_settings(given)
    from service.app import serve

    return serve(settings)
