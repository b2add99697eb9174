"""Finds the kinds of reply, one module each, and makes them as a request asks.

A module of this package that has an `OUTPUT` is one: its name is the value of `output=` and, in
capitals, that of the protocol's enum. Parameters, OpenAPI and gRPC know what is found here.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Final, Protocol, Self

import numpy.typing as npt

from model.contract import Contract
from service.core.outputs.classes import select, selected_ids
from service.core.outputs.scores import arrays, check_arrays
from service.core.types import Float32Array, SegmentOptions, Timings, UInt8Array
from service.errors import InvalidParameter, quoted

DEFAULT: Final = "label_map"
PNG: Final = "image/png"
JSON: Final = "application/json"
GEOJSON: Final = "application/geo+json"
NPY: Final = "application/x-npy"

Reduce = Callable[
    [Float32Array, UInt8Array, SegmentOptions, frozenset[int] | None], npt.NDArray[Any]
]
"""Makes of logits float32 [C,H,W] and their label map uint8 [H,W] an array [...,H,W]; the ids are
those of the classes selected, None for all."""


@dataclass(frozen=True, slots=True)
class Segmentation:
    """Holds what a reply's body is made of.

    image: uint8 RGB [H,W,3], the upload; only of an output that needs it. network_size: height and
    width at which the network saw it. label_map: uint8 [H,W]; classes that were not selected are
    void, 255. scores: the array that the output's `reduce` made, if it has one. palette: uint8 RGB
    [256,3].
    """

    image: UInt8Array
    label_map: UInt8Array
    scores: Any
    contract: Contract
    palette: UInt8Array
    model: str
    version: str
    options: SegmentOptions
    timings: Timings
    network_size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """Describes one kind of reply.

    options: names of the options that it alone reads. answers_media_type: whether Accept chooses it
    by its media type. is_quick: whether it is made so soon that the thread of a CPU's instance
    makes it, see `policy.Postprocess`. needs_image: whether it reads the upload. reduce: only of an
    output that needs logits; check_size refuses, by height, width and number of classes, what that
    would make.
    """

    name: str
    media_type: str
    encode: Callable[[Segmentation], bytes]
    options: tuple[str, ...] = ()
    answers_media_type: bool = False
    is_quick: bool = False
    needs_image: bool = False
    reduce: Reduce | None = None
    check_size: Callable[[int, int, int, SegmentOptions], None] | None = None

    @property
    def needs_logits(self) -> bool:
        return self.reduce is not None


@cache
def all_outputs() -> Mapping[str, OutputFormat]:
    """Finds them by name: first the default, then in alphabetical order."""
    package = __name__.rpartition(".")[0]
    path = importlib.import_module(package).__path__
    modules = [importlib.import_module(f"{package}.{m.name}") for m in pkgutil.iter_modules(path)]
    found: list[OutputFormat] = [m.OUTPUT for m in modules if hasattr(m, "OUTPUT")]
    found.sort(key=lambda output: (output.name != DEFAULT, output.name))
    return MappingProxyType({output.name: output for output in found})


def output_named(name: str) -> OutputFormat:
    """Finds one by name. Raises: InvalidParameter."""
    output = all_outputs().get(name)
    if output is None:
        *most, last = all_outputs()
        raise InvalidParameter(
            f"there is no output {quoted(name)}: use {', '.join(most)} or {last}"
        )
    return output


class Colored(Protocol):
    """Has what outputs ask of a version of a model. palette: uint8 RGB [256,3]."""

    name: str
    version: str
    palette: UInt8Array

    @property
    def contract(self) -> Contract: ...


class Encoder:
    """Makes one model's replies as one request's options ask for them."""

    def __init__(
        self,
        options: SegmentOptions,
        contract: Contract,
        palette: UInt8Array,
        *,
        model: str,
        version: str,
    ) -> None:
        """Checks the options. palette: the contract's, made once. Raises: InvalidParameter."""
        if not 0.0 <= options.alpha <= 1.0:
            raise InvalidParameter(f"alpha is {options.alpha:g}: give a number from 0 to 1")
        self.output = None if options.output is None else output_named(options.output)
        self._options = options
        self._contract = contract
        self._palette = palette
        self._model = model
        self._version = version
        by_output = self.output is not None and self.output.needs_logits
        if (options.scores or by_output) and contract.outputs.logits is None:
            wanted = options.scores[0] if options.scores else options.output
            raise InvalidParameter(
                f"output {wanted} needs the logits, and model {model} version {version} was "
                "exported without them: export it with --logits, or choose another output"
            )
        if options.scores and by_output:
            raise InvalidParameter(
                f"output {options.output} and arrays of scores are asked for at once: ask for one "
                "of them"
            )
        self._selected_ids = selected_ids(contract, options.classes) if options.classes else None

    @classmethod
    def of(cls, options: SegmentOptions, model: Colored) -> Self:
        """Makes that of a model that was loaded. Raises: InvalidParameter."""
        return cls(options, model.contract, model.palette, model=model.name, version=model.version)

    @property
    def media_type(self) -> str:
        return "" if self.output is None else self.output.media_type

    @property
    def needs_logits(self) -> bool:
        by_output = self.output is not None and self.output.needs_logits
        return by_output or bool(self._options.scores)

    @property
    def needs_image(self) -> bool:
        """Tells whether `encode` reads the upload's own pixels."""
        return self.output is not None and self.output.needs_image

    @property
    def is_quick(self) -> bool:
        """Tells whether `encode` needs nothing but the label map, and little time."""
        return self.output is not None and self.output.is_quick and not self._options.scores

    def check_size(self, height: int, width: int) -> None:
        """Raises: ImageTooLarge when what is asked for would be too many bytes."""
        options, classes = self._options, len(self._contract.classes)
        if options.scores:
            check_arrays(height, width, classes, options.scores, options.max_scores_bytes)
        elif self.output is not None and self.output.check_size is not None:
            if self._selected_ids is not None:
                classes = len(self._selected_ids)
            self.output.check_size(height, width, classes, options)

    def reduce(self, label_map: UInt8Array, logits: Float32Array | None) -> npt.NDArray[Any]:
        """Makes of logits what the reply needs, which takes less memory; only if it needs them."""
        if logits is None or not self.needs_logits:
            raise ValueError("there are no logits, or they are not needed")
        if self._options.scores:
            return arrays(logits, label_map, self._options.scores)
        if self.output is None or self.output.reduce is None:
            raise ValueError("this output needs no logits")
        return self.output.reduce(logits, label_map, self._options, self._selected_ids)

    def encode_at_once(self, image: UInt8Array, label_map: UInt8Array, _: object) -> bytes:
        """Makes the body of an output that is quick; see `policy.Postprocess`.

        label_map: of the tensor, which may be larger than the image.
        """
        label_map = label_map[: image.shape[0], : image.shape[1]]
        return self.encode(image, label_map, None, Timings())

    def encode(
        self,
        image: UInt8Array,
        label_map: UInt8Array,
        scores: npt.NDArray[Any] | None,
        timings: Timings,
        network_size: tuple[int, int] | None = None,
    ) -> bytes:
        """Makes the body, see `Segmentation`; it is empty without an output.

        label_map: of all classes. network_size: None for the label map's. Raises: ImageTooLarge.
        """
        if self.output is None:
            return b""
        if self._selected_ids is not None and not self.output.needs_logits:
            label_map = select(label_map, self._selected_ids)
        return self.output.encode(
            Segmentation(
                image,
                label_map,
                scores,
                self._contract,
                self._palette,
                self._model,
                self._version,
                self._options,
                timings,
                network_size or label_map.shape[:2],
            )
        )
