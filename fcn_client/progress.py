"""Shows a progress bar on stderr, where tqdm is installed."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from fcn_client.errors import FcnError


class Bar(Protocol):
    """Has what is used of tqdm's."""

    def update(self, n: int = 1) -> Any: ...


class _NoBar:
    def update(self, n: int = 1) -> None:
        pass


@contextmanager
def progress_bar(shown: bool, total: int | None, unit: str = "image") -> Iterator[Bar]:
    """Shows a bar for the block. Raises: FcnError where tqdm is not there."""
    if not shown:
        yield _NoBar()
        return
    try:
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        raise FcnError("a progress bar needs tqdm: pip install tqdm, or do without") from error
    with tqdm(total=total, unit=unit, dynamic_ncols=True) as bar:
        yield bar


def length(source: object) -> int | None:
    """Tells how many items there are, where that is known."""
    return operator.length_hint(source, 0) or None
