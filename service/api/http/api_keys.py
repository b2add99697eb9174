"""Who may ask what over REST, where the server has API keys: seen to before a request is read.

What is not named here as open needs a key, also an address that does not exist.
"""

from __future__ import annotations

from typing import Any, Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.http import openapi
from service.api.http.page import FILES_PATH
from service.api.http.problem import service_problem
from service.api.keys import Keys, offered
from service.api.oip.error import OIP_PREFIX, oip_service_error
from service.errors import NotAuthenticated
from service.telemetry import RequestRecord

OPEN_PATHS: Final = frozenset(
    {
        *("/", openapi.DOCS_PATH, openapi.OPENAPI_PATH),
        *("/livez", "/readyz", "/metrics"),
        *(f"{OIP_PREFIX}/health/live", f"{OIP_PREFIX}/health/ready"),
    }
)
OPEN_FOLDERS: Final = (f"{FILES_PATH}/", f"{OIP_PREFIX}/repository/")
"""The pages' files; and what the admin key guards, which see to that themselves."""


def is_open(path: str) -> bool:
    """path: as it is routed, unescaped."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


def with_keys(page: dict[str, Any], *, asked: bool) -> dict[str, Any]:
    """The OpenAPI page with the two ways to send a key, and, if keys are asked for, with what they
    are asked for. Changes `page`, and may be called again."""
    page.setdefault("components", {})["securitySchemes"] = openapi.KEY_SCHEMES
    for path, operations in page["paths"].items():
        if asked and not is_open(path):
            for operation in operations.values():
                operation["security"] = [{name: []} for name in openapi.KEY_SCHEMES]
                operation["responses"].update(openapi.NO_KEY)
    return page


class Gate:
    """Wraps the application, inside `Exchange`; plain ASGI as that is."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_open(scope["path"]):
            headers = Headers(scope=scope)
            record: RequestRecord = scope["fcn_record"]
            try:
                caller = self._keys.admit(
                    offered(headers.get("authorization"), headers.get("x-api-key"))
                )
            except NotAuthenticated as error:
                is_oip = scope["path"].startswith(OIP_PREFIX)
                answer = oip_service_error if is_oip else service_problem
                await answer(error, record)(scope, receive, send)
                return
            record.caller = caller.name
        await self._app(scope, receive, send)
