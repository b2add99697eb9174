"""`fcn models`: what is in a model repository, without serving it."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "list the models of a repository, with classes, data, licence and scores"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "repository",
        nargs="?",
        type=Path,
        help="folder of models [FCN_MODEL_REPOSITORY, default: model_repository]",
    )
    parser.add_argument("--json", action="store_true", help="write one JSON object")


def run(args: argparse.Namespace) -> int:
    """Raises: SettingsError, ModelLoadError."""
    import json
    import sys

    from service.core.engines.onnx_runtime import open_onnx_runtime
    from service.core.models.repository import scan
    from service.errors import ModelLoadError
    from service.settings import load_settings

    repository = args.repository or load_settings().model_repository
    rows, refused = [], []
    for file in scan(repository):
        # Opened as the server would, so that what is listed here will also be served there.
        try:
            contract = open_onnx_runtime(file.path, provider="cpu", threads=1).contract
        except ModelLoadError as error:
            refused.append((file, str(error)))
        else:
            rows.append((file, contract))
    for _, why in refused:
        print(f"fcn: {' '.join(why.split())}", file=sys.stderr)
    if args.json:
        models = [
            {
                "name": file.name,
                "version": file.version,
                "path": str(file.path),
                "bytes": file.path.stat().st_size,
                "contract": contract.to_dict(),
            }
            for file, contract in rows
        ]
        failed = [{"name": f.name, "version": f.version, "error": why} for f, why in refused]
        print(json.dumps({"models": models, "failed": failed}))
        return 1 if refused else 0
    for file, contract in rows:
        data = contract.training_data
        scores = ", ".join(f"{name} {value:g}" for name, value in contract.scores.items())
        print(f"{file.name} version {file.version}")
        print(f"  network  {contract.architecture}, {contract.precision}")
        print(f"  classes  {len(contract.classes)}: {', '.join(contract.class_names)}")
        print(f"  data     {data.name} ({data.licence})")
        print(f"  scores   {scores or 'none measured'}")
        print(f"  file     {file.path}, {file.path.stat().st_size / 1e6:.1f} MB")
    return 1 if refused else 0
