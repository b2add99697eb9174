"""Defines what goes in and out of the segmenter, and what runs and watches it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from model.contract import Contract
from service.errors import InvalidParameter, quoted

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]

Clock = Callable[[], float]
"""Monotonic seconds."""


class Instance(Protocol):
    """Runs one copy of a network; one thread at a time calls it, others run beside it.

    full_device: whether it takes all of the device for a lone image, where the other instances
    share it. Its answers are theirs.
    """

    full_device: bool = False

    def run(self, batch: UInt8Array, /) -> UInt8Array:
        """Labels images of one size: uint8 RGB [N,H,W,3] -> class ids uint8 [N,H,W]."""
        ...

    def run_with_logits(self, batch: UInt8Array, /) -> tuple[UInt8Array, Float32Array]:
        """Returns the logits float32 [N,C,H,W], too; only where the contract names that output."""
        ...

    def forget(self) -> None:
        """Frees what it keeps for sizes that it has run, if it keeps anything."""
        return None

    def terminate(self) -> None:
        """Has the run at hand raise soon, if the runtime can; called on any thread."""
        return


class Dtype(StrEnum):
    """Names the type of probabilities as numpy does; uint8 is 255 times the probability."""

    UINT8 = "uint8"
    FLOAT16 = "float16"


class Score(StrEnum):
    """Names what the network can say of every class at every pixel, float32 [C,H,W]."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"


MAX_SIDE_PX: Final = 65_535
"""No JPEG has more. A network fills each side up to its stride, and tiles are laid along it."""

Scale = Literal["auto", "none"] | int
"""At what size the network sees an image: at the one it learned, as the contract has it; at the
image's own; or with the longer side at most so many pixels."""


def scale_of(text: str) -> Scale:
    """Reads a scale as users write it. Raises: InvalidParameter."""
    if text in ("auto", "none"):
        return "auto" if text == "auto" else "none"
    if text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= MAX_SIDE_PX:
        return int(text)
    raise InvalidParameter(
        f"scale={quoted(text)}: use auto, none, or how many pixels the longer side may have, from "
        f"1 to {MAX_SIDE_PX}"
    )


class Priority(IntEnum):
    """Says which of a client's images goes first when the device is busy, for a while.

    LOW is bulk work, of any client: it gets what the others leave, and a share of its own.
    """

    HIGH = 0
    NORMAL = 1
    LOW = 2


@dataclass(frozen=True, slots=True)
class SegmentOptions:
    """Says which model segments an image, and what the reply holds.

    model, version: None means the default one.
    output: the name of what the body is to be, see `service.core.outputs.registry`; None for
    nothing but the array of the label map.
    alpha: opacity of the overlay, 0..1. outlines: draw the classes' borders in it, too. dtype: of
    probabilities. classes: names or ids to keep; empty keeps all. What is not kept is 255 (void)
    in a label map, undrawn in overlay and color, 0 in confidence, left out of all others.
    scores: arrays to answer with besides the body, in this order; not with an output that needs
    logits itself. max_scores_bytes: of all of them; what would have more is refused. scale: see
    `Scale`.
    deadline_s: time allowed from now; None means no limit.
    """

    model: str | None = None
    version: str | None = None
    output: str | None = "label_map"
    alpha: float = 0.5
    outlines: bool = False
    dtype: Dtype = Dtype.UINT8
    classes: tuple[str, ...] = ()
    scores: tuple[Score, ...] = ()
    max_scores_bytes: int = 512 * 1024 * 1024
    deadline_s: float | None = None
    priority: Priority = Priority.NORMAL
    scale: Scale = "auto"


@dataclass(slots=True)
class Timings:
    """Counts the seconds of each stage; infer_s is that of the whole batch the image was in.

    began_s, started_s, ended_s: the moments of the clock at which its decode was asked for, its
    batch started, and its rendering ended, if that was not done at once; 0 until then. marks: of
    the batch's members, see `Client.follow`.
    """

    decode_s: float = 0.0
    queue_s: float = 0.0
    infer_s: float = 0.0
    render_s: float = 0.0
    began_s: float = 0.0
    started_s: float = 0.0
    ended_s: float = 0.0
    marks: tuple[Any, ...] = ()


@dataclass(slots=True)
class SegmentReply:
    """Holds the answer to one image.

    height, width: of the upload, upright. network_size: height and width at which the network saw
    it.

    label_map: uint8 [H,W], of all classes, whatever the body shows. scores: float32 [C,H,W] each,
    as they were asked for.
    """

    body: bytes
    media_type: str
    height: int
    width: int
    model: str
    version: str
    label_map: UInt8Array
    timings: Timings = field(default_factory=Timings)
    batch_size: int = 1
    scores: tuple[Float32Array, ...] = ()
    network_size: tuple[int, int] = (0, 0)


class Client:
    """Says who asks. client: whose request it is, for its turn among others."""

    __slots__ = ()
    client: str = ""

    @property
    def id(self) -> str:
        """Names the request, as answers and log lines do."""
        return ""

    def charge(self, pixels: int) -> None:
        """Is told of an admitted image, before it is decoded. Raises: LimitExceeded."""

    def follow(self, timings: Timings) -> object:
        """Is told what the stages of an admitted image will be noted in. Returns the image's mark,
        which those get who share a batch with it; the core does not look into it."""
        return None


NOBODY: Final = Client()
"""Asks where all requests are of one client."""


class ModelState(StrEnum):
    """Says what a version does.

    DRAINING: it answers the requests it has and takes no more. UNLOADED: it is in the repository
    only.
    """

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    DRAINING = "draining"
    UNLOADED = "unloaded"


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """Tells how a version runs.

    provider: where, "cpu", "cuda" or "tensorrt". engine, precision, instead_of: see `Network`.
    path: the file.
    """

    version: str
    state: ModelState
    contract: Contract
    provider: str
    path: Path
    engine: str
    precision: str
    instead_of: str = ""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """Describes a model that serves. versions: those loaded, ascending by number.

    default_version: the one used when none is asked for. aliases: other names for the model, or,
    where a version follows, for that one. description: what it is for, in a line.
    """

    name: str
    default_version: str
    versions: tuple[VersionStatus, ...]
    aliases: tuple[tuple[str, str | None], ...] = ()
    description: str = ""

    @property
    def default(self) -> VersionStatus:
        return next(v for v in self.versions if v.version == self.default_version)


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """Describes one version in the repository, whether it serves or not.

    reason: why it does not, or, of one that is ready, why a newer file or setting was refused.
    """

    name: str
    version: str
    state: ModelState
    reason: str = ""


@dataclass(eq=False)
class Network:
    """Holds what a model's file became: at least one instance that shares the device, and at most
    one that takes all of it.

    path: the file that runs, which may be one beside the version's `model.onnx`. provider: "cpu",
    "cuda" or "tensorrt". engine: "onnxruntime" or "openvino". precision: computed in, "" for the
    file's. prepare: takes a tensor's height and width and what to do once it can run, at once or
    on another thread; None: any can run. instead_of: the engine or provider that was to run it and
    failed, "" if none did.
    """

    path: Path
    contract: Contract
    provider: str
    instances: Sequence[Instance]
    engine: str = "onnxruntime"
    precision: str = ""
    prepare: Callable[[int, int, Callable[[], None]], None] | None = None
    instead_of: str = ""

    def __post_init__(self) -> None:
        self.precision = self.precision or self.contract.precision


class Observer:
    """Is told what happens, and watches nothing unless a subclass does: telemetry is one.

    Called on the event loop, `queue_depth` on any thread but one at a time, `compiled` and
    `decoder_lost` on any; must not block or raise. stage is one of "decode", "queue", "infer",
    "render". reason is one of "overloaded" (no admission permit), "queue_full", "too_late" (by
    prediction), "uploads" (too many being read), "deadline", "cancelled", "shutting_down",
    "unauthenticated" (no API key, or a wrong one), "guesses" (after too many wrong keys). why is
    "crash" or "hang". closed is why a batch took no more images: "alone" (no other of its size
    waited), "full", "late" (for a deadline), "turn" (of an older image of another size), "retry".
    outcome of a run that took far too long is "ended", or "lost" with its model.
    """

    def stage(self, model: str, stage: str, seconds: float) -> None: ...

    def batch(self, model: str, size: int, closed: str) -> None: ...

    def queue_depth(self, model: str, version: str, n: int) -> None: ...

    def inflight(self, n: int) -> None: ...

    def rejected(self, reason: str) -> None: ...

    def stuck(self, model: str, outcome: str) -> None: ...

    def image_pixels(self, n: int) -> None: ...

    def decoder_lost(self, why: str) -> None: ...

    def compiled(self, seconds: float) -> None: ...
