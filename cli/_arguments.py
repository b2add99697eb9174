"""Arguments that several commands take."""

from __future__ import annotations

import argparse
from typing import Literal


def positive(text: str) -> int:
    """Reads a whole number from 1. Raises: ArgumentTypeError."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: want a whole number, 1 or more")
    return value


def seconds(text: str) -> float:
    """Reads the time that a request may take. Raises: ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.001 <= value <= 3600:  # what the server takes as a deadline
        raise argparse.ArgumentTypeError(f"{text}: want seconds, up to 3600")
    return value


def scale(text: str) -> Literal["auto", "none"] | int:
    """Reads at what size the network is to see images. Raises: ArgumentTypeError."""
    if text in ("auto", "none"):
        return "auto" if text == "auto" else "none"
    try:
        return positive(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text}: want auto, none, or how many pixels the longer side may have"
        ) from None


def share(text: str) -> float:
    """Reads a part of a whole. Raises: ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: want 0 to 1, as in 0.65")
    return value
