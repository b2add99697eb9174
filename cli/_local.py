"""The service's segmenter as a labeller of `fcn predict`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fcn_client.errors import FcnError, InvalidInput
from fcn_client.predict.labeller import check_keep
from fcn_client.types import ClassInfo
from service.api.models import default_name, model_named
from service.core.segmenter import SegmentOptions
from service.errors import ServiceError
from service.local import LocalSegmenter
from service.settings import Settings


class LocalLabeller:
    """See `fcn_client.predict.Labeller`; in this process, with the server's own code."""

    def __init__(
        self,
        source: Path,
        settings: Settings,
        model: str | None = None,
        version: str | None = None,
        keep: Sequence[str] = (),
    ) -> None:
        """source: a model file or a model repository. Raises: ServiceError, InvalidInput."""
        self._segmenter = LocalSegmenter(source, settings)
        try:
            models = self._segmenter.models()
            name = model or default_name(models, settings.default_model)
            if name is None:
                there = ", ".join(known.name for known in models)
                raise InvalidInput(
                    f"{source} holds several models: name one with --model ({there})"
                )
            status = model_named(models, name)
            self.name, self.version = name, version or status.default_version
            found = [v for v in status.versions if v.version == self.version]
            if not found:
                there = ", ".join(v.version for v in status.versions)
                raise InvalidInput(f"model {name} has no version {version!r}: it has {there}")
            self._keep = tuple(keep)
            self.classes = tuple(
                ClassInfo(c.id, c.name, c.color, c.description) for c in found[0].contract.classes
            )
            check_keep(self._keep, self.classes)
        except BaseException:
            self.close()
            raise
        # A file that was exported again under the same name is another network.
        file = source if source.is_file() else source / self.name / self.version / "model.onnx"
        stat = file.stat() if file.is_file() else None
        stamp = f" {stat.st_size} {stat.st_mtime_ns}" if stat else ""
        self.identity = f"{self.name} {self.version}{stamp}"

    def __call__(self, picture: bytes) -> bytes:
        options = SegmentOptions(model=self.name, version=self.version, classes=self._keep)
        try:
            return self._segmenter.segment(picture, options).body
        except ServiceError as error:
            raise FcnError(f"{error.title}: {error}") from error

    def close(self) -> None:
        self._segmenter.close()
