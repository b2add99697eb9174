"""The user's words about a network, and the error that says what is wrong with them or with it."""

from __future__ import annotations

from dataclasses import dataclass

from model.preprocessing import Preprocessing


class AdoptError(ValueError):
    """A network cannot be adopted; the message says why and what to do. Nothing was written."""


@dataclass(frozen=True, slots=True)
class AdoptOptions:
    """Holds the user's words, None where it is to be found out.

    size: (height, width) that every image is resized to. multiple_of_px: sides are padded to it.
    output_is: "logits", "probabilities" or "labels". output_layout: of scores, "NCHW" or "NHWC".
    threshold: above it a single score means class 1. antialias: an image made smaller is averaged,
    as Pillow does it. align_corners: of the scores' resize to the image.
    """

    preprocessing: Preprocessing
    size: tuple[int, int] | None = None
    multiple_of_px: int | None = None
    output_is: str | None = None
    output_layout: str | None = None
    threshold: float | None = None
    align_corners: bool = False
    antialias: bool = True
