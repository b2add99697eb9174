"""Serves browsers: the web page at `/` with its files, `/status`, and Swagger UI at `/docs`.

All of it is served from here. A strict Content-Security-Policy keeps it so: no page works with
anything from another address, and none is needed on a machine without internet.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

from service.api.http.middleware import call_of
from service.api.http.openapi import DOCS_PATH, FILES_PATH, STATUS_PATH

FOLDER: Final = Path(__file__).resolve().parents[2] / "web"
SWAGGER_PATH: Final = f"{FILES_PATH}/swagger"
_SWAGGER_PACKAGE: Final = "fastapi_offline"
"""The package (PyPI, MIT) carries Swagger UI (Apache-2.0) in its folder `static`."""

_POLICY: Final = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Kept, but asked for again each time: after an update no page mixes old and new files.
    "Cache-Control": "no-cache",
}
# Swagger UI writes its icons as data: addresses, and its style sheet's rules into elements. The
# image that "Try it out" got is shown from the page's own memory, at a blob: address.
_DOCS_HEADERS: Final = {
    **HEADERS,
    "Content-Security-Policy": (
        f"{_POLICY}; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'"
    ),
}


def add_pages(app: FastAPI) -> None:
    """Adds the pages' files, `/docs` and `/status`; `/` is the caller's, which has JSON, too."""
    app.mount(SWAGGER_PATH, _Files(directory=str(files(_SWAGGER_PACKAGE) / "static")))
    app.mount(FILES_PATH, _Files(directory=FOLDER))
    app.add_api_route(DOCS_PATH, _docs, methods=["GET"], include_in_schema=False)
    app.add_api_route(STATUS_PATH, _status, methods=["GET"], include_in_schema=False)


def wants_page(accept: str | None) -> bool:
    """Says whether the caller is a browser that opens an address: only those name text/html."""
    return "text/html" in (accept or "")


def page() -> Response:
    """Answers with the web page."""
    return FileResponse(FOLDER / "index.html", headers={**HEADERS, "Vary": "Accept"})


async def _docs(request: Request) -> Response:
    _note(request.scope)
    return FileResponse(FOLDER / "docs.html", headers=_DOCS_HEADERS)


async def _status(request: Request) -> Response:
    _note(request.scope)
    return FileResponse(FOLDER / "status.html", headers=HEADERS)


class _Files(StaticFiles):
    """Serves one folder with the pages' headers; opening a page is not worth ten log lines."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        _note(scope)
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def _note(scope: Scope) -> None:
    record = call_of(scope).record
    record.method, record.probe = "Page", True
