"""Defines what goes into the client and what comes out, the same over REST and gRPC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from fcn_client.errors import FcnError

UInt8Array: TypeAlias = npt.NDArray[np.uint8]
ImageLike: TypeAlias = UInt8Array | Image.Image | bytes | str | Path
"""uint8 RGB [H,W,3], a Pillow image, an encoded file's bytes, or the path of one."""

ImageOutput: TypeAlias = Literal["label_map", "color", "overlay"]

V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)
I_co = TypeVar("I_co", covariant=True)


class SegmentOptions(TypedDict, total=False):
    """Lists what `segment` and its siblings take by name; all may be left out.

    model, version: the server's default, and its newest. classes: keep only these, by name or id.
    alpha: opacity of the classes in an overlay, 0 to 1. outlines: draw their borders in it. dtype:
    of the numbers of `probabilities`. priority: who goes first on a busy device.
    scale: at what size the network sees the image: "auto", at one that the model knows; "none", at
    its own; or the most pixels that the longer side may have. The answer has the image's own size.
    deadline_ms: time from the call until the answer, retries and waits included; the server drops
    work that cannot make it. Without it, the client's `timeout_s`. request_id: to find the request
    in the server's log; one is made for every request that brings none.
    """

    model: str | None
    version: str | None
    classes: Sequence[str | int]
    alpha: float
    outlines: bool
    dtype: Literal["uint8", "float16"]
    priority: Literal["high", "normal", "low"]
    scale: Literal["auto", "none"] | int
    deadline_ms: float | None
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Timings:
    """Has the seconds that the server spent in each stage."""

    decode_s: float = 0.0
    queue_s: float = 0.0
    infer_s: float = 0.0
    render_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SegmentResult(Generic[V_co]):
    """Holds an answer.

    value: uint8 [H,W] class ids for `label_map`, uint8 RGB [H,W,3] for `color` and `overlay`, a
    dict for `json`. body: the same as it came, encoded as `media_type`. attempts: 1 unless the
    server had to be asked again. network_size: height and width at which the network saw the image;
    None from servers that do not tell.
    """

    value: V_co = field(repr=False)
    output: str
    body: bytes = field(repr=False)
    media_type: str
    model: str
    version: str
    request_id: str
    timings: Timings
    attempts: int = 1
    network_size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Outcome(Generic[I_co, V_co]):
    """Tells what became of one image of many. `index`: its place among them."""

    index: int
    image: I_co = field(repr=False)
    result: SegmentResult[V_co] | None = None
    error: FcnError | None = None

    @property
    def ok(self) -> bool:
        return self.result is not None

    def unwrap(self) -> SegmentResult[V_co]:
        """Returns the result. Raises: the FcnError that there is instead."""
        if self.result is None:
            raise self.error or FcnError("there is neither a result nor an error")
        return self.result


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """Describes a class. `id`: a pixel's value in label maps. `color`: RGB, 0 to 255."""

    id: int
    name: str
    color: tuple[int, int, int]
    description: str = ""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """Describes a version. `contract`: all that its file says, as in `GET /v1/models`. `engine`: ""
    from servers that do not tell."""

    version: str
    state: str
    precision: str
    provider: str
    classes: tuple[ClassInfo, ...]
    contract: Mapping[str, Any] = field(repr=False)
    engine: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """Describes a model. `default_version`: answers requests that name no version. `description`:
    what it is for, "" where nobody said so."""

    name: str
    is_default: bool
    default_version: str
    versions: tuple[ModelVersion, ...]
    description: str = ""

    @property
    def default(self) -> ModelVersion:
        return next(v for v in self.versions if v.version == self.default_version)


def background_of(classes: Sequence[ClassInfo]) -> int | None:
    """Finds the class that an overlay leaves alone, as the server does: the one called background,
    else class 0 where it is black."""
    for info in classes:
        if info.name.strip("_ ").lower() == "background":
            return info.id
    return 0 if classes and classes[0].color == (0, 0, 0) else None


def classes_of(contract: Mapping[str, Any]) -> tuple[ClassInfo, ...]:
    """Reads the classes. Raises: KeyError, TypeError, ValueError where it is no contract."""
    return tuple(
        ClassInfo(int(c["id"]), str(c["name"]), _color(c["color"]), str(c.get("description") or ""))
        for c in contract["classes"]
    )


def _color(values: Sequence[int]) -> tuple[int, int, int]:
    red, green, blue = values
    return int(red), int(green), int(blue)


@dataclass(frozen=True, slots=True)
class Call:
    """Represents one request as the transports take it.

    deadline_s, timeout_s: from now; the server is told the former, if there is one, and the latter
    ends the wait here.
    """

    image: bytes
    output: str
    model: str | None
    version: str | None
    classes: tuple[str, ...]
    alpha: float | None
    outlines: bool | None
    dtype: str | None
    priority: str | None
    scale: str | int | None
    request_id: str
    deadline_s: float | None
    timeout_s: float


@dataclass(frozen=True, slots=True)
class RawReply:
    """Represents an answer before its body is read."""

    body: bytes
    media_type: str
    model: str
    version: str
    request_id: str
    timings: Timings
    network_size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class StreamResult(Generic[V]):
    """Represents an image of a stream that is through. `end`: its answer, or why there is none."""

    index: int
    image: V = field(repr=False)
    end: RawReply | FcnError
    attempts: int = 1


class OpenStream(Protocol):
    """Represents one call of `SegmentStream`, as the transports have it."""

    def send(self, id: str, call: Call) -> None: ...

    def close(self) -> None: ...
