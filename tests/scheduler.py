"""The order in which pytest-xdist hands the tests to its processes."""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

LAST = "alone"


class ByFile(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives a file to one process; what is `alone` waits until nothing else runs.

    The items come with those of `alone` at the end. When only these are left, the processes end
    one by one, and the last one takes them once the others have done their tests.
    """

    def __init__(
        self,
        config: pytest.Config,
        log: Any,
        alone: tuple[str, ...],
        one_after_another: tuple[str, ...],
    ) -> None:
        super().__init__(config, log)
        self._alone, self._one_after_another = alone, one_after_another

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(self._alone):
            return LAST
        if nodeid.startswith(self._one_after_another):
            return "one after another"
        return nodeid.partition("::")[0]

    def _reschedule(self, node: Any) -> None:
        if node not in self.registered_collections:
            return  # in place of one that crashed, it has not said yet which tests there are
        left = len(self.workqueue)
        others = [other for other in self.nodes if other is not node]
        if node.shutting_down or next(iter(self.workqueue), None) != LAST or not others:
            super()._reschedule(node)
        elif any(not other.shutting_down for other in others):
            node.shutdown()  # does what it was given
        elif not any(self._pending_of(self.assigned_work[other]) for other in others):
            super()._reschedule(node)
        if len(self.workqueue) < left:
            # A process keeps its last test until it knows the next one, or that there is none: of a
            # single test it would never report.
            self._reschedule(node)

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        super().mark_test_complete(node, item_index, duration)
        for other in self.nodes:
            if other is not node:
                self._reschedule(other)

    def remove_node(self, node: Any) -> Any:
        """Takes back what a process that crashed had not done. xdist would hand out all that it was
        given: files of which nothing is left, after which nobody reports, and so asks for more."""
        work = self.assigned_work[node]
        for scope in [scope for scope, unit in work.items() if all(unit.values())]:
            del work[scope]
        return super().remove_node(node)
