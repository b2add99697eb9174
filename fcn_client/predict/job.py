"""Predicts several items at a time and writes their outputs; one's failure is no other's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

from fcn_client.errors import FcnConnectionError, FcnError, NotAllowed, NotAuthenticated
from fcn_client.predict.inputs import Item
from fcn_client.predict.labeller import Labeller
from fcn_client.predict.outputs import Folder, Record
from fcn_client.progress import progress_bar
from fcn_client.sync.window import in_window


@dataclass(slots=True)
class Summary:
    """Counts items. `skipped`: complete before. `failures`: (source, frame, why)."""

    done: int = 0
    skipped: int = 0
    failures: list[tuple[str, int | None, str]] = field(default_factory=list)


def predict(
    items: Iterable[Item],
    labeller: Labeller,
    folder: Folder,
    *,
    in_flight: int = 4,
    progress: bool = False,
    total: int | None = None,
) -> Summary:
    """Writes what is missing. The CSV is written in any case, also when this is interrupted.

    Raises: FcnConnectionError when the server is gone, NotAuthenticated or NotAllowed when it wants
    another key: a second call goes on from there. OSError when the outputs cannot be written.
    """
    summary = Summary()

    def missing() -> Iterator[Item]:
        for item in items:
            if folder.holds(item):
                summary.skipped += 1
                bar.update()
            else:
                yield item

    def work(index: int, item: Item) -> tuple[Item, Record | FcnError]:
        try:
            body = item.load()
            return item, folder.write(item, body, labeller(body))
        except (FcnConnectionError, NotAuthenticated, NotAllowed):
            raise
        except FcnError as error:
            return item, error

    with (
        closing(folder),
        progress_bar(progress, total) as bar,
        closing(in_window(work, missing(), in_flight, ordered=False)) as results,
    ):
        for item, result in results:
            if isinstance(result, Record):
                folder.note(result)
                summary.done += 1
            else:
                summary.failures.append((item.source, item.frame, str(result)))
            bar.update()
    summary.failures.sort(key=lambda failure: (failure[0], failure[1] or 0))
    return summary
