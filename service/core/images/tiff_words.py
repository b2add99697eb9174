"""Says in words how the samples of a TIFF are stored."""

from __future__ import annotations

from typing import Final

# Source: TIFF 6.0, and libtiff's tiff.h: PhotometricInterpretation.
NAMES: Final = {
    0: "grey",
    1: "grey",
    2: "RGB",
    3: "palette",
    4: "transparency mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    32803: "sensor (CFA)",
    34892: "raw",
}


def summary(
    photometric: int,
    depths: tuple[int, ...],
    formats: tuple[int, ...],
    samples: int,
    compression: int,
    planar: int,
) -> str:
    name = NAMES.get(photometric, f"of photometric interpretation {photometric}")
    kinds = {1: "", 2: " signed", 3: " floating-point"}
    kind = kinds.get(formats[0], f" format-{formats[0]}") if len(set(formats)) == 1 else " mixed"
    stored = "separate" if planar == 2 else "interleaved"
    return (
        f"{name}, {listed(tuple(dict.fromkeys(depths)))}-bit{kind}, {samples} {stored} "
        f"{'sample' if samples == 1 else 'samples'}, compression {compression}"
    )


def listed(numbers: tuple[int, ...]) -> str:
    return " or ".join(filter(None, [", ".join(map(str, numbers[:-1])), str(numbers[-1])]))
