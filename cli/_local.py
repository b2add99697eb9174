"""Makes the service's segmenter a labeller of `fcn predict`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fcn_client.errors import FcnError, InvalidInput
from fcn_client.predict.labeller import at_scale, check_keep
from fcn_client.types import ClassInfo
from service.core.models.repository import digest_of
from service.core.types import Scale, SegmentOptions
from service.errors import ServiceError
from service.local import LocalSegmenter
from service.settings import Settings


class LocalLabeller:
    """Labels images in this process by the server's own code; see `fcn_client.predict.Labeller`."""

    def __init__(
        self,
        source: Path,
        settings: Settings,
        model: str | None = None,
        version: str | None = None,
        keep: Sequence[str] = (),
        scale: Scale = "auto",
    ) -> None:
        """source: a model file or a model repository. scale: see `Scale`.

        Raises: ServiceError, InvalidInput.
        """
        self._segmenter = LocalSegmenter(source, settings)
        try:
            try:
                found, chosen = self._segmenter.status(model, version)
            except ServiceError as error:
                raise InvalidInput(f"{source}: {error} (--model, --model-version)") from error
            self.name, self.version = found.name, chosen.version
            self._keep = tuple(keep)
            self._scale: Scale = scale
            self.classes = tuple(
                ClassInfo(c.id, c.name, c.color, c.description) for c in chosen.contract.classes
            )
            check_keep(self._keep, self.classes)
            # Which file runs depends on the settings and on the machine, and one that was exported
            # again under the same name is another network.
            self.identity = (
                f"{self.name} {self.version} {chosen.precision} {digest_of(chosen.path)[:16]}"
                f"{at_scale(scale)}"
            )
        except BaseException:
            self.close()
            raise

    def __call__(self, image: bytes) -> bytes:
        options = SegmentOptions(
            model=self.name, version=self.version, classes=self._keep, scale=self._scale
        )
        try:
            return self._segmenter.segment(image, options).body
        except ServiceError as error:
            raise FcnError(f"{error.title}: {error}") from error

    def close(self) -> None:
        self._segmenter.close()
