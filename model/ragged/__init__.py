"""Images of several sizes in one batch, each with the answer it has alone."""

from model.ragged.maps import NotRagged
from model.ragged.rewrite import ragged

__all__ = ["NotRagged", "ragged"]
