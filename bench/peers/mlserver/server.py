"""Serves with MLServer: a custom runtime with a handler of its own, in several processes.

Its adaptive batching works on the V2 protocol's tensors only, not on such a handler.
"""

# No `from __future__ import annotations`: FastAPI reads the handler's, and not in this module.
import json
import sys
from pathlib import Path
from typing import Annotated

from fastapi import Body, Response
from mlserver import MLModel
from mlserver.cli.main import main
from mlserver.handlers import custom_handler
from network import Network, setting


class Segment(MLModel):
    async def load(self) -> bool:
        self.network = Network()
        return True

    @custom_handler(rest_path="/segment")
    async def segment(self, image: Annotated[bytes, Body()]) -> Response:
        return Response(self.network.segment(image), media_type="image/png")


def configure(folder: Path) -> None:
    """Writes the two files `mlserver start` reads; ports it does not need are free ones."""
    settings = {
        "host": "127.0.0.1",
        "http_port": setting("PORT"),
        "grpc_port": setting("PORT") + 1,
        "metrics_port": setting("PORT") + 2,
        "parallel_workers": setting("WORKERS", 1),
        "debug": False,
        "gzip_enabled": False,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    model = {"name": "segment", "implementation": "server.Segment"}
    (folder / "model-settings.json").write_text(json.dumps(model))


if __name__ == "__main__":
    configure(Path.cwd())
    sys.argv = ["mlserver", "start", "."]
    main()
