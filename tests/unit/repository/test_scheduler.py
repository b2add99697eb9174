"""The order in which test processes get their files, also when one of them crashes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.scheduler import ByFile

FILES = {"a.py": 4, "b.py": 4, "c.py": 4, "d.py": 4, "alone.py": 4}
TESTS = [f"{file}::test_{n}" for file, count in FILES.items() for n in range(count)]


class Node:
    """Stands for a process: before it is told to end, it keeps the last of what it was sent."""

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.sent: list[int] = []
        self.shutting_down = False

    def send_runtest_some(self, indices: list[int]) -> None:
        self.sent.extend(indices)

    def shutdown(self) -> None:
        self.shutting_down = True

    def next(self) -> int | None:
        if len(self.sent) > (0 if self.shutting_down else 1):
            return self.sent.pop(0)
        return None


def run(crashes_at: str | None) -> list[str]:
    """Hands out all tests; a process ends without a word at `crashes_at`. Returns what was run."""
    config: Any = SimpleNamespace(
        getvalue=lambda name: ["2*popen"], option=SimpleNamespace(loadscopereorder=False)
    )
    log = SimpleNamespace(loadscopesched=None, loadfilesched=lambda *words: None)
    scheduler: Any = ByFile(config, log, ("alone.py",), ())
    nodes = [Node("gw0"), Node("gw1")]
    for node in nodes:
        scheduler.add_node(node)
    for node in nodes:
        scheduler.add_node_collection(node, TESTS)
    scheduler.schedule()
    done: list[str] = []
    moved = True
    while moved:
        moved = False
        for node in list(nodes):
            index = node.next()
            if index is None:
                continue
            moved = True
            if TESTS[index] == crashes_at:
                crashes_at = None
                nodes.remove(node)
                assert scheduler.remove_node(node) == TESTS[index]
                nodes.append(Node("gw2"))
                scheduler.add_node(nodes[-1])
                scheduler.add_node_collection(nodes[-1], TESTS)
                scheduler.schedule()
                continue
            done.append(TESTS[index])
            scheduler.mark_test_complete(node, index)
    assert scheduler.tests_finished
    assert all(node.shutting_down and not node.sent for node in nodes)
    return done


def test_every_test_is_run_once_and_those_alone_come_last() -> None:
    done = run(None)
    assert sorted(done) == sorted(TESTS)
    assert all(name.startswith("alone.py") for name in done[-FILES["alone.py"] :])


def test_a_crash_loses_no_other_test_and_ends() -> None:
    for crashes_at in TESTS:
        assert sorted(run(crashes_at)) == sorted(TESTS), crashes_at
