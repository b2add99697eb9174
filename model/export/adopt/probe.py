"""Learning by trial runs what a file does not say about its network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model.export.adopt.network import INTEGERS
from model.export.adopt.options import AdoptError, AdoptOptions
from model.export.adopt.original import Original
from model.export.adopt.output import Output, read_output
from model.export.adopt.preprocessing import is_plain, preprocess
from model.export.onnx_file import first_line, random_images

_MULTIPLES: Final = (1, 2, 4, 8, 14, 16, 32, 64, 128)
"""Powers of two, and the patches of DINOv2."""
_SAME_PROPORTION: Final = 0.1
"""Padding and cut edges change it by less, at the sizes of a trial."""
_SMALLEST: Final = (1, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Probed:
    """Holds what was learned of a network.

    size: every image is resized to it, or None. full_size: labels or scores have the size of the
    network's image. factor: how much smaller they are, where that is a whole number that divides
    every side. one_at_a_time: the network is run image by image.
    """

    output: Output
    size: tuple[int, int] | None
    multiple_of_px: int
    min_side_px: int
    full_size: bool
    factor: int | None
    one_at_a_time: bool


def probe(
    original: Original, options: AdoptOptions, classes: int, *, logits: bool = False
) -> Probed:
    """Run the network and read its answers. logits: whether they are wanted. Raises: AdoptError."""
    network = original.network
    if network.dtype in INTEGERS and not is_plain(options.preprocessing):
        raise AdoptError(
            f"input {network.input!r} takes pixels as {INTEGERS[network.dtype]}, which leaves "
            "nothing to normalise: say --preprocessing none"
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
    output = read_output(network, results, options, classes, logits=logits)
    pairs = [(given, output.plane(values.shape)) for given, values in results.items()]
    if any(given[0] != given[1] and _is_turned(given, got) for given, got in pairs):
        raise AdoptError(
            f"output {network.output!r} has height and width in each other's place: export it as "
            "[N,C,H,W] or [N,H,W,C]"
        )
    full = all(given == got for given, got in pairs)
    factors = {(given[0] / got[0], given[1] / got[1]) for given, got in pairs}
    factor = None
    if size is None and len(factors) == 1:
        tall, wide = factors.pop()
        if tall == wide and tall == int(tall) and multiple % int(tall) == 0:
            factor = int(tall)
    return Probed(
        output=output,
        size=size,
        multiple_of_px=multiple,
        min_side_px=smallest,
        full_size=full and size is None,
        factor=factor,
        one_at_a_time=single,
    )


_Results = dict[tuple[int, int], npt.NDArray[Any]]


def _fixed_size(original: Original, options: AdoptOptions) -> tuple[int, int] | None:
    height, width = original.network.height_px, original.network.width_px
    own = f"{height or 'any'}x{width or 'any'}"
    size = options.size
    if size is None:
        if height is None and width is None:
            return None
        if height is None or width is None:
            raise AdoptError(f"the network takes images of {own} (height x width): say --size")
        size = (height, width)
    if min(size) < 1:
        raise AdoptError(f"--size {size[0]} {size[1]}: want 1 or more")
    if (height or size[0], width or size[1]) != size:
        raise AdoptError(
            f"the network takes images of {own} (height x width), not {size[0]}x{size[1]}: "
            "leave --size out"
        )
    if options.multiple_of_px is not None:
        raise AdoptError(
            f"every image is resized to {size[0]}x{size[1]}, so --multiple-of has no meaning"
        )
    return size


def _try(
    original: Original, options: AdoptOptions, count: int, height: int, width: int
) -> npt.NDArray[Any]:
    """Raises whatever the runtime raises."""
    images = random_images(np.random.default_rng(0), count, height, width).astype(np.float32)
    result: npt.NDArray[Any] = original.run(preprocess(options.preprocessing, images))
    if result.ndim < 3 or result.shape[0] != count or 0 in result.shape:
        raise AdoptError(
            f"for {count} images of {height}x{width} output {original.network.output!r} is "
            f"{list(result.shape)}: want [N,C,H,W], [N,H,W,C] or [N,H,W]"
        )
    if not np.isfinite(result.astype(np.float32)).all():
        raise AdoptError(
            f"output {original.network.output!r} has numbers that are infinite or none: check "
            "mean, std and scale"
        )
    return result


def _at_fixed_size(
    original: Original, options: AdoptOptions, size: tuple[int, int]
) -> tuple[_Results, bool]:
    """Runs the network at its size, and tells whether only one image at a time works."""
    failure: Exception | None = None
    for count in _counts(original):
        try:
            return {size: _try(original, options, count, *size)}, count == 1
        except Exception as error:
            failure = error
    raise _refused(failure, f"images of {size[0]}x{size[1]}")


def _find_multiple(original: Original, options: AdoptOptions) -> tuple[int, _Results, bool]:
    """Finds the smallest number whose multiples the network takes, and what it gave."""
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
    raise _refused(failure, f"images whose sides are {tried}")


def _find_smallest(
    original: Original, options: AdoptOptions, multiple: int, results: _Results, single: bool
) -> int:
    """Finds the smallest side that works; what it gives is added to `results`."""
    largest, _ = _sides(multiple)
    for side in sorted({-(-side // multiple) * multiple for side in _SMALLEST}):
        try:
            found = {
                size: _try(original, options, 1 if single else 2, *size)
                for size in ((side, side), (side, largest), (largest, side))
            }
        except Exception:  # nosec B112  # a runtime raises anything: too small a side for this graph
            continue
        results.update(found)
        return side
    return largest


def _counts(original: Original) -> Iterator[int]:
    """Yields two images at once, then one where that fails: a batch of one may be baked in."""
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


def _is_turned(given: tuple[int, int], got: tuple[int, int]) -> bool:
    """Tell whether `got` has the proportions of an image on its side rather than this one's."""
    upright, turned = (
        got[0] / got[1] / ratio for ratio in (given[0] / given[1], given[1] / given[0])
    )
    return abs(turned - 1) < abs(upright - 1) and abs(turned - 1) < _SAME_PROPORTION


def _sides(multiple: int) -> tuple[int, int]:
    """Picks two of about 100 pixels, or a little more, that share no other divisor."""
    first = _prime(max(5, -(-97 // multiple)))
    return multiple * first, multiple * _prime(max(first + 1, -(-131 // multiple)))


def _prime(at_least: int) -> int:
    while any(at_least % divisor == 0 for divisor in range(2, int(at_least**0.5) + 1)):
        at_least += 1
    return at_least
