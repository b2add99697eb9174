"""Requests of many connections begin one after the other: who sends many ahead, over many
connections, keeps others waiting for one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from service.connections import Turns
from tests.contract.test_connection_bounds import GET, LAST, answering, rest_of, serving


class Waiting:
    """A connection that has requests, and another as soon as one is begun."""

    def __init__(self, turns: Turns, told: Callable[[Waiting], None]) -> None:
        self.turns, self.told, self.ahead, self.turn = turns, told, False, 0

    def begin(self) -> None:
        self.told(self)


async def test_one_request_begins_in_each_round_of_the_loop() -> None:
    begun: list[Any] = []
    rounds = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.append(scope["client"])
        await answering(b"")(scope, receive, send)

    async def count() -> None:
        nonlocal rounds
        while True:
            await asyncio.sleep(0)
            rounds += bool(begun)

    async with serving(app) as site:
        counting = asyncio.create_task(count())
        links = [await site.connect(GET * 20 + LAST) for _ in range(8)]
        assert [(await rest_of(link)).count(b" 200 ") for link in links] == [21] * 8
        counting.cancel()
    assert len(begun) == 8 * 21
    assert rounds >= 8 * 21 - 2


async def test_what_was_sent_ahead_waits_for_what_was_not_and_newcomers_are_first() -> None:
    turns, order = Turns(), list[Waiting]()
    first, ahead, known, newcomer = (Waiting(turns, order.append) for _ in range(4))
    ahead.ahead, ahead.turn, known.turn = True, 1, 2
    for connection in (first, ahead, known, newcomer):
        turns.ask(connection)
    assert order == [first], "nobody waits while nobody else does"
    for number in range(2, 5):
        await asyncio.sleep(0)
        assert len(order) == number
    assert order == [first, newcomer, known, ahead]


async def test_a_thousand_connections_have_their_turns_one_after_the_other() -> None:
    turns, order, done = Turns(), list[Waiting](), asyncio.Event()

    def again(connection: Waiting) -> None:
        order.append(connection)
        if len(order) < 3000:
            turns.ask(connection)
        else:
            done.set()

    everybody = [Waiting(turns, again) for _ in range(1000)]
    for connection in everybody:
        turns.ask(connection)
    await done.wait()
    assert {order[:3000].count(connection) for connection in everybody} == {3}
