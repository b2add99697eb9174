"""Labels images by a server, or (in `cli`) by the service's own code in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Protocol

from fcn_client.errors import (
    FcnConnectionError,
    FcnError,
    FcnTimeoutError,
    InvalidInput,
    ServerError,
)
from fcn_client.sync.client import FcnClient
from fcn_client.types import ClassInfo, Model, ModelVersion

ATTEMPTS: Final = 2
_NO_ANSWER: Final = frozenset({502, 503, 504})
"""How proxies say that the server behind them gave none."""


class Labeller(Protocol):
    """Asks one version of one model; called from several threads.

    identity: differs between networks, so that a resumed job does not mix two of them.
    """

    name: str
    version: str
    identity: str
    classes: tuple[ClassInfo, ...]

    def __call__(self, image: bytes, /) -> bytes:
        """Makes a file's bytes an 8-bit palette PNG of class ids, 255 void. Raises: FcnError."""
        ...

    def close(self) -> None: ...


class RemoteLabeller:
    """Asks a server's model. Its version is settled at the start: one that goes live meanwhile must
    not mix with it."""

    def __init__(
        self,
        client: FcnClient,
        model: str | None = None,
        version: str | None = None,
        keep: Sequence[str] = (),
        deadline_s: float | None = None,
        scale: Literal["auto", "none"] | int = "auto",
    ) -> None:
        """client: closed with this, also when this fails. keep: classes by name or id; all when
        empty. deadline_s: for each image, with what the client retries; the server's if None.
        scale: see `fcn_client.types.SegmentOptions`. Raises: FcnError."""
        self._client = client
        self._deadline_ms = None if deadline_s is None else 1000 * deadline_s
        self._keep = tuple(keep)
        self._scale = scale
        try:
            chosen = _model(client.models(), model, client.url)
            self.name = chosen.name
            self.version = version or chosen.default_version
            found = _version(chosen, self.version)
            self.classes = found.classes
            check_keep(self._keep, self.classes)
        except BaseException:
            client.close()
            raise
        self.identity = f"{self.name} {self.version} {found.precision}{at_scale(scale)}"

    def __call__(self, image: bytes, /) -> bytes:
        """Asks again for an image that was not answered in time, or for which a proxy got no
        answer: the next attempt may meet a less busy moment. What else can be retried the client
        does."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._asked(image)
            except (FcnTimeoutError, ServerError) as error:
                if isinstance(error, ServerError) and error.status not in _NO_ANSWER:
                    raise
                if attempt == ATTEMPTS:
                    raise FcnError(f"{error} (asked {attempt} times; see --deadline)") from error
            except FcnConnectionError as error:
                if self._is_gone():
                    raise
                raise FcnError(f"{error}, and for this image alone") from error
        raise AssertionError("an attempt returns or raises")

    def _asked(self, image: bytes) -> bytes:
        return self._client.segment(
            image,
            model=self.name,
            version=self.version,
            classes=self._keep,
            priority="low",  # whoever waits for one image goes before a folder of them
            deadline_ms=self._deadline_ms,
            scale=self._scale,
        ).body

    def _is_gone(self) -> bool:
        """Tells a server that is gone from one that, or whose proxy, breaks off over one image."""
        try:
            self._client.models()
        except FcnError:
            return True
        return False

    def close(self) -> None:
        self._client.close()


def at_scale(scale: str | int) -> str:
    """Names a scale in a labeller's identity, unless it is the default."""
    return "" if scale == "auto" else f" scale={scale}"


def check_keep(keep: Sequence[str], classes: Sequence[ClassInfo]) -> None:
    """Refuses before the first image what is wrong for all of them. Raises: InvalidInput."""
    known = {c.name for c in classes} | {str(c.id) for c in classes}
    for name in keep:
        if name not in known:
            there = ", ".join(c.name for c in classes)
            raise InvalidInput(f"--classes: {name!r} is not one of this model's: {there}")


def _model(models: Sequence[Model], name: str | None, url: str) -> Model:
    for model in models:
        if model.name == name or (name is None and model.is_default):
            return model
    there = ", ".join(model.name for model in models) or "none"
    if name is None:
        raise InvalidInput(f"{url} has no default model: name one with --model ({there})")
    raise InvalidInput(f"{url} has no model {name!r}: it has {there}")


def _version(model: Model, version: str) -> ModelVersion:
    for known in model.versions:
        if known.version == version:
            return known
    there = ", ".join(known.version for known in model.versions)
    raise FcnError(f"model {model.name} has no version {version!r}: it has {there}")
