"""fcn_client/sync/ is what `make sync` makes of fcn_client/aio/."""

from __future__ import annotations

import inspect

import pytest

from fcn_client import AsyncFcnClient, FcnClient, tasks, threads
from tools import make_sync


def test_the_client_for_threads_is_fresh() -> None:
    texts = {path: path.read_text() for path in make_sync.SYNC.glob("*.py")}
    assert texts == make_sync.made(), "run `make sync`"


@pytest.mark.parametrize("word", ["async ", "await ", "asyncio", "fcn_client.aio"])
def test_nothing_of_asyncio_is_left(word: str) -> None:
    for path in make_sync.SYNC.glob("*.py"):
        code = path.read_text().partition('"""')[2].partition('"""')[2]
        assert word not in code, path


def test_a_sentence_that_is_gone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(make_sync.TEXTS, "No file says this.", "Nor this.")
    with pytest.raises(ValueError, match="no longer says .* 'No file says this.'"):
        make_sync.made()


def test_tasks_and_threads_have_the_same_names() -> None:
    """Names that fcn_client/aio/ imports from one, fcn_client/sync/ imports from the other."""
    names = set(threads.__all__)
    assert names <= set(vars(tasks)) and names <= set(vars(threads))


def test_both_clients_take_the_same() -> None:
    methods = {name for name in vars(FcnClient) if not name.startswith("_")} - {"close"}
    assert methods == {n for n in vars(AsyncFcnClient) if not n.startswith("_")} - {"aclose"}
    for name in {*methods, "__init__"}:
        sync, asynchronous = (
            inspect.signature(getattr(client, name)).parameters
            for client in (FcnClient, AsyncFcnClient)
        )
        assert list(sync) == list(asynchronous)
        assert [p.default for p in sync.values()] == [p.default for p in asynchronous.values()]
