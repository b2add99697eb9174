"""The one error of adoption."""

from __future__ import annotations


class AdoptError(ValueError):
    """A network cannot be adopted; the message says why and what to do. Nothing was written."""
