"""The contract file: what a server must know about a network before it may serve it.

`fcn export` writes a `Contract` as JSON into the ONNX file's `metadata_props` under
`METADATA_KEY`; the server reads it back and refuses a file without one. Normalisation, colour
order, upsampling to pixels and arg max are inside the graph, so none of them is described here.

Numpy and the standard library only: the service imports this module and must not need torch.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from sys import float_info
from typing import Any

import numpy as np
import numpy.typing as npt

METADATA_KEY = "fcn_contract"
FORMAT_VERSION = 3
"""The newest format understood: 2 added `input.sizes`, 3 `input.learned_side_px` and its range. A
file has the lowest that says what it says, for servers of earlier versions."""
PLAIN_FORMAT_VERSION = 1
MAX_CLASSES = 255
"""Class ids are 0..254 in a uint8 label map; 255 is void."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


class ContractError(ValueError):
    """A contract is absent, incomplete or contradicts itself; the message says which field."""


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """Describes a class: `id` is the pixel value in a label map, `color` is RGB in 0..255."""

    id: int
    name: str
    color: tuple[int, int, int]
    description: str = ""


def palette_of(classes: Iterable[ClassInfo]) -> npt.NDArray[np.uint8]:
    """Makes RGB uint8 [256,3]: row = class id; rows without a class (void, too) are black."""
    table = np.zeros((256, 3), np.uint8)
    for info in classes:
        table[info.id] = info.color
    return table


@dataclass(frozen=True, slots=True)
class InputSpec:
    """Describes the image tensor: uint8 RGB [N,H,W,3] (`NHWC`), values 0..255.

    `stride` is the network's coarsest stride in pixels. Sides must lie in
    [`min_side_px`, `max_side_px`]; `max_side_px` None means no limit of the network's own.
    Sides need not be multiples of the stride unless `multiple_of_px` > 1.

    A pixel's label depends on no pixel farther than `context_px` from it along either axis, so
    parts of an image that start at multiples of the stride and overlap by that much have the
    labels of the whole. None: it may depend on every pixel, or nobody knows.

    `sizes` names a second input, int64 [N,2]: height and width of each image, which lies in the
    top left corner of its [H,W,3] and is followed by zeros. Only files of earlier versions have it.

    `learned_side_px` is the longer side of the images it learned from; where the longer side is
    from `range_from_px` to `range_to_px`, it labels about as well (`fcn evaluate --scales`). A
    server scales other images to the former. None, all three: nobody measured it.
    """

    name: str = "image"
    layout: str = "NHWC"
    dtype: str = "uint8"
    color_order: str = "RGB"
    stride: int = 32
    min_side_px: int = 1
    max_side_px: int | None = None
    multiple_of_px: int = 1
    context_px: int | None = None
    sizes: str | None = None
    learned_side_px: int | None = None
    range_from_px: int | None = None
    range_to_px: int | None = None

    @property
    def range_px(self) -> tuple[int, int, int] | None:
        """Returns the longer sides from which on, of which and up to which it learned to label."""
        if self.range_from_px and self.learned_side_px and self.range_to_px:
            return self.range_from_px, self.learned_side_px, self.range_to_px
        return None

    @property
    def format_version(self) -> int:
        """Returns the lowest format of a contract that says this."""
        if self.range_px is not None:
            return 3
        return PLAIN_FORMAT_VERSION if self.sizes is None else 2


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """Names the outputs: `label_map` uint8 [N,H,W]; `logits` float32 [N,C,H,W], if exported."""

    label_map: str = "label_map"
    logits: str | None = None


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Names what the weights were learned from, and the licence that follows from it."""

    name: str
    licence: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Contract:
    """Holds everything the service relies on besides the graph itself. See the module docstring."""

    model_name: str
    architecture: str
    classes: tuple[ClassInfo, ...]
    training_data: TrainingData
    input: InputSpec = field(default_factory=InputSpec)
    outputs: OutputSpec = field(default_factory=OutputSpec)
    ignore_index: int = 255
    scores: Mapping[str, float] = field(default_factory=dict)
    git_revision: str = "unknown"
    precision: str = "fp32"
    format_version: int = PLAIN_FORMAT_VERSION

    def __post_init__(self) -> None:
        """Raises ContractError when fields contradict one another."""
        if not PLAIN_FORMAT_VERSION <= self.format_version <= FORMAT_VERSION:
            raise _unknown_format(self.format_version)
        if not _NAME.fullmatch(self.model_name):
            raise ContractError(
                f"model_name {self.model_name!r}: use letters, digits, '.', '_' and '-', "
                "starting with a letter or digit, at most 128"
            )
        if not 1 <= len(self.classes) <= MAX_CLASSES:
            raise ContractError(f"classes: want 1..{MAX_CLASSES}, got {len(self.classes)}")
        for index, info in enumerate(self.classes):
            if info.id != index:
                raise ContractError(f"classes[{index}].id is {info.id}: ids must count from 0")
            if len(info.color) != 3 or not all(0 <= c <= 255 for c in info.color):
                raise ContractError(f"classes[{index}].color {info.color}: want three of 0..255")
        names = [info.name for info in self.classes]
        if len(set(names)) != len(names):
            raise ContractError("classes: names repeat")
        if not len(self.classes) <= self.ignore_index <= 255:
            raise ContractError(f"ignore_index {self.ignore_index} is a class id or above 255")
        spec = self.input
        if (spec.layout, spec.dtype, spec.color_order) != ("NHWC", "uint8", "RGB"):
            raise ContractError(
                f"input must be uint8 NHWC RGB, not {spec.dtype} {spec.layout} {spec.color_order}: "
                "fold the conversion into the graph"
            )
        if min(spec.stride, spec.min_side_px, spec.multiple_of_px) < 1:
            raise ContractError("input: stride, min_side_px and multiple_of_px must be >= 1")
        if spec.max_side_px is not None and spec.max_side_px < spec.min_side_px:
            raise ContractError("input: max_side_px is below min_side_px")
        if spec.context_px is not None and (spec.context_px < 0 or spec.context_px % spec.stride):
            raise ContractError("input: context_px must be a multiple of stride, 0 or more")
        if spec.sizes is not None and (self.format_version < 2 or spec.sizes == spec.name):
            raise ContractError(
                f"input.sizes {spec.sizes!r}: want the name of another input than the image's, in "
                "a contract of format 2"
            )
        if (known := spec.range_px) is None:
            if spec.learned_side_px or spec.range_from_px or spec.range_to_px:
                raise ContractError(
                    "input: learned_side_px, range_from_px and range_to_px go together: give all "
                    "three or none"
                )
        elif not 1 <= known[0] <= known[1] <= known[2] <= (spec.max_side_px or _MAX_INT):
            raise ContractError(
                "input: want 1 <= range_from_px <= learned_side_px <= range_to_px <= max_side_px, "
                f"not {', '.join(map(str, known))}"
            )
        elif self.format_version < 3:
            raise ContractError("input.learned_side_px: want it in a contract of format 3")
        if self.precision not in PRECISIONS:
            raise ContractError(f"precision {self.precision!r}: want one of {PRECISIONS}")
        for name, score in self.scores.items():
            # NaN is not JSON: one in here would break every reply that quotes the contract.
            if type(score) is bool or not isinstance(score, int | float) or not abs(score) <= _MAX:
                raise ContractError(
                    f"scores[{name!r}] is {score!r}: want a finite number; leave out what was not "
                    "measured"
                )

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(info.name for info in self.classes)

    def palette(self) -> npt.NDArray[np.uint8]:
        """Makes the palette, see `palette_of`."""
        return palette_of(self.classes)

    @property
    def background(self) -> int | None:
        """Finds the class that is none of the things looked for, which an overlay leaves alone: the
        one called background, else class 0 where it is black."""
        for info in self.classes:
            if info.name.strip("_ ").lower() == "background":
                return info.id
        return 0 if self.classes[0].color == (0, 0, 0) else None

    def class_id(self, name_or_id: str) -> int:
        """Finds the id of a class given by name or by number. Raises KeyError if there is none."""
        for info in self.classes:
            if name_or_id in (info.name, str(info.id)):
                return info.id
        raise KeyError(name_or_id)

    def to_dict(self) -> dict[str, Any]:
        """Makes it ready for JSON; tuples become lists."""
        result: dict[str, Any] = json.loads(self.to_json())
        return result

    def to_json(self) -> str:
        fields = dataclasses.asdict(self)
        for name in _LATER_INPUT_FIELDS:
            if fields["input"][name] is None:
                del fields["input"][name]  # unknown to readers of format 1
        return json.dumps(fields, sort_keys=True)

    def feeds(self, batch: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Gives the graph's inputs by name. batch: uint8 RGB [N,H,W,3]."""
        feeds: dict[str, npt.NDArray[Any]] = {self.input.name: batch}
        if self.input.sizes is not None:
            feeds[self.input.sizes] = np.array([batch.shape[1:3]] * len(batch), np.int64)
        return feeds

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """Raises ContractError naming the field that is missing, unknown or ill-typed."""
        try:
            raw = json.loads(text)
            json.dumps(raw, ensure_ascii=False).encode()  # replies quote it: no half surrogates
        # Besides JSONDecodeError: numbers of thousands of digits, lists in lists in lists.
        except (ValueError, RecursionError) as error:
            raise ContractError(f"the contract is not JSON: {error}") from error
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if type(version) is int and version > FORMAT_VERSION:
            # Said first: a newer format may have fields that would read as unknown below.
            raise _unknown_format(version)
        fields = _fields_of(Contract, raw, "contract")
        classes = fields["classes"]
        if not isinstance(classes, Sequence) or isinstance(classes, str):
            raise ContractError("contract.classes: want a list")
        fields["classes"] = tuple(_class_info(c, i) for i, c in enumerate(classes))
        data = _fields_of(TrainingData, fields["training_data"], "training_data")
        fields["training_data"] = TrainingData(**data)
        if "input" in fields:
            fields["input"] = InputSpec(**_fields_of(InputSpec, fields["input"], "input"))
        if "outputs" in fields:
            fields["outputs"] = OutputSpec(**_fields_of(OutputSpec, fields["outputs"], "outputs"))
        scores = fields.get("scores", {})
        if not isinstance(scores, dict):
            raise ContractError("contract.scores: want an object of numbers")
        return cls(**fields)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], source: str) -> Contract:
        """Reads an ONNX file's `metadata_props`; `source` names the file in the error.

        Raises: ContractError.
        """
        text = metadata.get(METADATA_KEY)
        if text is None:
            raise ContractError(
                f"{source} has no contract (metadata key {METADATA_KEY!r}): write it with "
                "`fcn export`, or `fcn adopt` for networks of other makes"
            )
        try:
            return cls.from_json(text)
        except ContractError as error:
            raise ContractError(f"{source}: {error}") from error


def _unknown_format(version: int) -> ContractError:
    return ContractError(
        f"contract format {version} is not understood (this is format {FORMAT_VERSION}): export "
        "the model again with this version of fcn"
    )


_LATER_INPUT_FIELDS = ("sizes", "learned_side_px", "range_from_px", "range_to_px")
_MAX_INT = 2**31 - 1
_MAX = float_info.max
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "str | None": (str, type(None)),
    "int | None": (int, type(None)),
}


def _fields_of(kind: type, raw: Any, where: str) -> dict[str, Any]:
    """Reads an object's fields; unknown, missing and ill-typed ones are refused by name."""
    if not isinstance(raw, dict):
        raise ContractError(f"{where}: want an object, got {type(raw).__name__}")
    known = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := sorted(set(raw) - set(known)):
        raise ContractError(f"{where}: unknown field {unknown[0]!r}")
    for name, spec in known.items():
        optional = (
            spec.default is not dataclasses.MISSING
            or spec.default_factory is not dataclasses.MISSING
        )
        if name not in raw:
            if not optional:
                raise ContractError(f"{where}: field {name!r} is missing")
            continue
        types = _JSON_TYPES.get(str(spec.type))
        value = raw[name]
        if types and (not isinstance(value, types) or isinstance(value, bool)):
            raise ContractError(f"{where}.{name}: want {spec.type}, got {value!r}")
        if isinstance(value, int) and abs(value) > _MAX_INT:
            raise ContractError(f"{where}.{name}: {value} is beyond measure")
    return dict(raw)


def _class_info(raw: Any, index: int) -> ClassInfo:
    fields = _fields_of(ClassInfo, raw, f"classes[{index}]")
    color = fields["color"]
    if not isinstance(color, list) or not all(type(c) is int for c in color):
        raise ContractError(f"classes[{index}].color: want three integers, got {color!r}")
    return ClassInfo(**{**fields, "color": tuple(color)})
