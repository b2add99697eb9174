"""The model repository of the Open Inference Protocol, for its operator."""

from __future__ import annotations

import hmac
from typing import Any, Final

from service.api.oip.models import index
from service.core.segmenter import Segmenter
from service.errors import InvalidParameter, NotAllowed, NotAuthenticated, quoted

SCHEME: Final = "bearer"


class Admin:
    """Offers the three operations to whoever brings the key."""

    def __init__(self, segmenter: Segmenter, key: str | None) -> None:
        """key: None refuses everybody."""
        self._segmenter = segmenter
        self._key = key

    def check(self, authorization: str | None) -> None:
        """Lets the operator in. authorization: the header or metadata of that name, `Bearer KEY`.

        Raises: NotAllowed, NotAuthenticated.
        """
        if self._key is None:
            raise NotAllowed(
                "this server has no admin key, so nobody may list, load or unload its models: set "
                "FCN_ADMIN_KEY or FCN_ADMIN_KEY_FILE and start it again"
            )
        scheme, _, offered = (authorization or "").partition(" ")
        # In constant time: how long it takes must not tell how much of a guess was right.
        same = hmac.compare_digest(offered.strip().encode(), self._key.encode())
        if scheme.lower() != SCHEME or not same:
            raise NotAuthenticated(
                "the admin key is missing or wrong: send it in the header Authorization: Bearer KEY"
            )

    def index(self, *, only_ready: bool) -> list[dict[str, str]]:
        return index(self._segmenter.index(), only_ready=only_ready)

    async def load(self, name: str, parameters: Any) -> None:
        """Loads a model.

        parameters: refused, whatever they are: no files are taken from callers, and no settings.

        Raises: ServiceError.
        """
        if parameters:
            raise InvalidParameter(
                f"the parameters {quoted(', '.join(map(str, parameters)))} are not taken: a model "
                "and its settings come out of the model repository's folder"
            )
        await self._segmenter.load(name)

    async def unload(self, name: str) -> None:
        """Raises: ServiceError."""
        await self._segmenter.unload(name)
