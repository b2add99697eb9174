"""Predicts several items at a time and writes their outputs; one's failure is no other's."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

from fcn_client.errors import FcnConnectionError, FcnError, NotAllowed, NotAuthenticated
from fcn_client.predict.inputs import Item, printable
from fcn_client.predict.labeller import Labeller
from fcn_client.predict.outputs import Folder
from fcn_client.predict.writer import Record
from fcn_client.progress import progress_bar
from fcn_client.sync.window import in_window

_DISKS: Final = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)
)
"""These stop the job: no other item would fare better."""


@dataclass(slots=True)
class Summary:
    """Counts items. `skipped`: complete before. `replaced`: of those done, whose outputs took the
    place of another file's, or of an earlier content's. `kept`: images of earlier runs that are
    none of these. `failures`: (source, frame, why), in UTF-8 without control characters."""

    done: int = 0
    skipped: int = 0
    replaced: int = 0
    kept: int = 0
    failures: list[tuple[str, int | None, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Holds what a report says of a job. ignored: files of kinds that cannot be predicted.
    dropped: frames of a camera that came while the network was busy."""

    labeller: Labeller
    folder: Folder
    summary: Summary
    ignored: int
    dropped: int = 0


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
    another key: a second call goes on from there. OSError when nothing can be written any more.
    """
    summary = Summary()

    def failed(item: Item, why: object) -> None:
        summary.failures.append((printable(item.source), item.frame, printable(str(why))))

    def missing() -> Iterator[Item]:
        for item in items:
            if other := folder.claim(item):
                failed(item, f"its outputs would take the place of those of {other}: rename it")
                bar.update()
            elif folder.holds(item):
                summary.skipped += 1
                bar.update()
            else:
                yield item

    def work(index: int, item: Item) -> tuple[Item, Record | Exception]:
        try:
            body = item.load()
            return item, folder.write(item, body, labeller(body))
        except (FcnConnectionError, NotAuthenticated, NotAllowed):
            raise
        except FcnError as error:
            return item, error
        except OSError as error:
            if error.errno in _DISKS:
                raise
            return item, FcnError(f"its outputs cannot be written: {error.strerror or error}")
        except Exception as error:  # whatever it is about this one, the others are not to suffer
            return item, FcnError(f"{type(error).__name__}: {error}")

    with (
        closing(folder),
        progress_bar(progress, total) as bar,
        closing(in_window(work, missing(), in_flight, ordered=False)) as results,
    ):
        for item, result in results:
            if isinstance(result, Record):
                summary.replaced += folder.note(result)
                summary.done += 1
            else:
                failed(item, result)
            bar.update()
    summary.kept = folder.unclaimed()
    summary.failures.sort(key=lambda failure: (failure[0], failure[1] or 0))
    return summary
