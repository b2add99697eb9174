"""Learning by trial runs what a file does not say about its network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from model.export.adopt.errors import AdoptError
from model.export.adopt.original import Original
from model.export.adopt.preprocessing import is_plain, preprocess
from model.export.onnx_file import first_line, random_images
from model.preprocessing import Preprocessing

_MULTIPLES: Final = (1, 2, 4, 8, 14, 16, 32, 64, 128)
"""Powers of two, and the patches of DINOv2."""
_SMALLEST: Final = (1, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class AdoptOptions:
    """Holds the user's words, None where it is to be found out.

    size: (height, width) that every picture is resized to. multiple_of_px: sides are padded to it.
    output_kind: "logits" or "label_map". output_layout: of scores, "NCHW" or "NHWC". threshold:
    above it a single score means class 1. antialias: a picture made smaller is averaged, as Pillow
    does it. align_corners: of the scores' resize to the picture.
    """

    preprocessing: Preprocessing
    size: tuple[int, int] | None = None
    multiple_of_px: int | None = None
    output_kind: str | None = None
    output_layout: str | None = None
    threshold: float | None = None
    align_corners: bool = False
    antialias: bool = True


@dataclass(frozen=True, slots=True)
class Probed:
    """kind: "scores" of every class, "score" of class 1 alone, or "label_map".

    axis: of the channels in a four-dimensional output, else None. size: every picture is resized to
    it, or None. full_size: labels or scores have the size of the network's picture. factor: how
    much smaller they are, where that is a whole number that divides every side. one_at_a_time: the
    network is run picture by picture. threshold: see AdoptOptions, for "score".
    """

    kind: str
    axis: int | None
    size: tuple[int, int] | None
    multiple_of_px: int
    min_side_px: int
    full_size: bool
    factor: int | None
    one_at_a_time: bool
    threshold: float = 0.0
    probabilities: bool = False


def probe(original: Original, options: AdoptOptions, classes: int) -> Probed:
    """Raises: AdoptError."""
    network = original.network
    if network.dtype == TensorProto.UINT8 and not is_plain(options.preprocessing):
        raise AdoptError(
            f"input {network.input!r} takes uint8 pixels, which leaves nothing to normalise: say "
            "--preprocessing none"
        )
    if options.multiple_of_px is not None and options.multiple_of_px < 1:
        raise AdoptError(f"sides cannot be a multiple of {options.multiple_of_px}: want 1 or more")
    size = _fixed_size(original, options)
    if size is None:
        multiple, results, single = _find_multiple(original, options)
        smallest = _find_smallest(original, options, multiple, results, single)
    else:
        multiple = smallest = 1
        results, single = _at_fixed_size(original, options, size)
    kind, axis = _read(results, options, classes, original)
    pairs = [(given, _plane(shape, axis)) for given, shape in results.items()]
    full = all(given == got for given, got in pairs)
    factors = {(given[0] / got[0], given[1] / got[1]) for given, got in pairs if 0 not in got}
    factor = None
    if size is None and len(factors) == 1:
        tall, wide = factors.pop()
        if tall == wide and tall == int(tall) and multiple % int(tall) == 0:
            factor = int(tall)
    sigmoid = original.network.ends_in == "Sigmoid"
    threshold = options.threshold
    if threshold is None:
        threshold = 0.5 if sigmoid else 0.0
    elif kind != "score":
        raise AdoptError(
            "a threshold is for networks with a single score per pixel; this one gives "
            + ("labels" if kind == "label_map" else f"{classes}")
        )
    elif sigmoid and not 0 < threshold < 1:
        raise AdoptError(f"the network gives probabilities: the threshold {threshold} is not one")
    return Probed(
        kind=kind,
        axis=axis,
        size=size,
        multiple_of_px=multiple,
        min_side_px=smallest,
        full_size=full and size is None,
        factor=factor,
        one_at_a_time=single,
        threshold=threshold,
        probabilities=sigmoid if kind == "score" else network.ends_in == "Softmax",
    )


@dataclass(frozen=True, slots=True)
class _Shape:
    """Describes a tensor that came out: its shape, the kind of its numbers, their range."""

    dims: tuple[int, ...]
    whole: bool
    lowest: float
    highest: float


_Results = dict[tuple[int, int], _Shape]


def _fixed_size(original: Original, options: AdoptOptions) -> tuple[int, int] | None:
    height, width = original.network.height_px, original.network.width_px
    own = f"{height or 'any'}x{width or 'any'}"
    size = options.size
    if size is None:
        if height is None and width is None:
            return None
        if height is None or width is None:
            raise AdoptError(f"the network takes pictures of {own} (height x width): say --size")
        size = (height, width)
    if min(size) < 1:
        raise AdoptError(f"--size {size[0]} {size[1]}: want 1 or more")
    if (height or size[0], width or size[1]) != size:
        raise AdoptError(
            f"the network takes pictures of {own} (height x width), not {size[0]}x{size[1]}: "
            "leave --size out"
        )
    if options.multiple_of_px is not None:
        raise AdoptError(
            f"every picture is resized to {size[0]}x{size[1]}, so --multiple-of has no meaning"
        )
    return size


def _try(original: Original, options: AdoptOptions, count: int, height: int, width: int) -> _Shape:
    """Raises whatever the runtime raises."""
    images = random_images(np.random.default_rng(0), count, height, width).astype(np.float32)
    result: npt.NDArray[Any] = original.run(preprocess(options.preprocessing, images))
    if result.ndim < 3 or result.shape[0] != count or 0 in result.shape:
        raise AdoptError(
            f"for {count} pictures of {height}x{width} output {original.network.output!r} is "
            f"{list(result.shape)}: want [N,C,H,W], [N,H,W,C] or [N,H,W]"
        )
    values = result.astype(np.float32)
    if not np.isfinite(values).all():
        raise AdoptError(
            f"output {original.network.output!r} has numbers that are infinite or none: check "
            "mean, std and scale"
        )
    integers = result.dtype.kind in "iub"
    whole = integers or bool((values == np.rint(values)).all())
    return _Shape(result.shape, whole, float(values.min()), float(values.max()))


def _at_fixed_size(
    original: Original, options: AdoptOptions, size: tuple[int, int]
) -> tuple[_Results, bool]:
    """And whether only one picture at a time."""
    failure: Exception | None = None
    for count in _counts(original):
        try:
            return {size: _try(original, options, count, *size)}, count == 1
        except Exception as error:
            failure = error
    raise _refused(failure, f"pictures of {size[0]}x{size[1]}")


def _find_multiple(original: Original, options: AdoptOptions) -> tuple[int, _Results, bool]:
    """The smallest whose multiples the network takes, and what it gave."""
    given = options.multiple_of_px
    failure: Exception | None = None
    for count, multiple in product(_counts(original), (given,) if given else _MULTIPLES):
        height, width = _sides(multiple)
        try:
            results = {
                size: _try(original, options, count, *size)
                for size in ((height, width), (width, height))
            }
            return multiple, results, count == 1
        except Exception as error:
            failure = error
    tried = f"multiples of {given}" if given else f"multiples of {_MULTIPLES[-1]} or less"
    raise _refused(failure, f"pictures whose sides are {tried}")


def _find_smallest(
    original: Original, options: AdoptOptions, multiple: int, results: _Results, single: bool
) -> int:
    """The smallest side that works; what it gives is added to `results`."""
    largest, _ = _sides(multiple)
    for side in sorted({-(-side // multiple) * multiple for side in _SMALLEST}):
        try:
            found = {
                size: _try(original, options, 1 if single else 2, *size)
                for size in ((side, side), (side, largest), (largest, side))
            }
        except Exception:
            continue
        results.update(found)
        return side
    return largest


def _counts(original: Original) -> Iterator[int]:
    """Two pictures at once first; one where that fails, as where a batch of one is baked in."""
    if not original.network.one_at_a_time:
        yield 2
    yield 1


def _refused(failure: Exception | None, what: str) -> AdoptError:
    if isinstance(failure, AdoptError):
        return failure
    said = first_line(failure) if failure else "nothing"
    return AdoptError(
        f"the network does not run on {what}: if it was made for one size, say --size HEIGHT "
        f"WIDTH; ONNX Runtime says: {said}"
    )


def _read(
    results: _Results, options: AdoptOptions, classes: int, original: Original
) -> tuple[str, int | None]:
    """Kind of the output, and the axis of its channels."""
    name = f"output {original.network.output!r}"
    size, shape = next(iter(results.items()))
    dims = shape.dims
    shown = f"{name} is {list(dims)} for pictures of {size[0]}x{size[1]}"
    kind = options.output_kind
    if kind is None and shape.whole and (len(dims) == 3 or 1 in (dims[1], dims[-1])):
        kind = "label_map"
    if kind == "label_map":
        axis = None if len(dims) == 3 else 1 if dims[1] == 1 else 3
        if len(dims) > 4 or axis is not None and dims[axis] != 1:
            raise AdoptError(f"{shown}, which is no label map: leave --output-kind out")
        highest = max(s.highest for s in results.values() if s.highest != 255)
        lowest = min(s.lowest for s in results.values())
        if highest >= classes or lowest < 0:
            raise AdoptError(
                f"{name} answers classes {lowest:g} to {highest:g} and the class list has "
                f"{classes}: its ids must count from 0 to the highest that the network answers"
            )
        return kind, axis
    if len(dims) != 4:
        raise AdoptError(
            f"{shown}: want scores as [N,C,H,W] or [N,H,W,C], or whole numbers as [N,H,W]"
        )
    axes = (1, 3) if options.output_layout is None else (options.output_layout.index("C"),)
    if fitting := [axis for axis in axes if dims[axis] == classes]:
        if len(fitting) == 2:
            raise AdoptError(
                f"{shown}, which does not say where its channels are: say "
                "--output-layout NCHW or NHWC"
            )
        return "scores", fitting[0]
    single = [axis for axis in axes if dims[axis] == 1]
    if classes == 2 and single:
        return "score", single[0]
    found = " or ".join(str(dims[axis]) for axis in axes if dims[axis] not in size) or str(dims[1])
    raise AdoptError(
        f"{shown}, which is scores of {found} classes, and the class list has {classes}: give a "
        "list with an entry for each, background included, in the network's order"
        + (" (with one score there are two classes)" if single else "")
    )


def _plane(shape: _Shape, axis: int | None) -> tuple[int, int]:
    """Height and width."""
    dims = [d for place, d in enumerate(shape.dims) if place not in (0, axis)]
    return dims[0], dims[1]


def _sides(multiple: int) -> tuple[int, int]:
    """Two of about 100 pixels, or a little more, that share no other divisor."""
    first = _prime(max(5, -(-97 // multiple)))
    return multiple * first, multiple * _prime(max(first + 1, -(-131 // multiple)))


def _prime(at_least: int) -> int:
    while any(at_least % divisor == 0 for divisor in range(2, int(at_least**0.5) + 1)):
        at_least += 1
    return at_least
