"""What has changed, and has stopped changing."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class Watch(Generic[T]):
    """Compares what is there by name at one look with what was there at those before."""

    def __init__(self) -> None:
        self._acted_on: dict[str, T] = {}
        self._last: dict[str, T] = {}

    def start(self, seen: Mapping[str, T]) -> None:
        """All that is there is known."""
        self._acted_on = dict(seen)
        self._last = dict(seen)

    def settled(self, seen: Mapping[str, T], keep: Container[str] = ()) -> set[str]:
        """The names that are new, other or gone, and were so at the last look already.

        Each change is returned once. keep: names of which nothing is known at this look.
        """
        names = {
            name
            for name in {*seen, *self._acted_on, *self._last}
            if name not in keep
            and seen.get(name) == self._last.get(name) != self._acted_on.get(name)
        }
        for name in names:
            if name in seen:
                self._acted_on[name] = seen[name]
            else:
                del self._acted_on[name]
        self._last = dict(seen)
        return names
