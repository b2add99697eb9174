"""Three times what the server can do, for a moment: those it takes it answers in time."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np

from bench.overload import Client, judged, open_loop, recovery
from tests.drawing import jpeg
from tests.serving import running, write_slow_model

RUN_S = 0.05
SECONDS = 2.5
DEADLINE_MS = 500


def test_a_flood(tmp_path: Path) -> None:
    """The bounds are wide: this machine has other things to do."""
    write_slow_model(tmp_path, turns=300)
    body = jpeg(np.full((32, 32, 3), 200, np.uint8))

    async def flood(url: str) -> None:
        client = Client(url, DEADLINE_MS, [body])
        begun = time.perf_counter()
        alone = [await client.send(n, time.perf_counter()) for n in range(8)]
        capacity = len(alone) / (time.perf_counter() - begun)
        assert {answer.status for answer in alone} == {200}
        answers = await open_loop(client, 3 * capacity, SECONDS, seed=1)
        recovered_s = await recovery(client, 0.2)
        client.close()
        found = judged(answers, SECONDS, DEADLINE_MS / 1000, capacity)
        assert set(found["statuses"]) <= {"200", "429", "504"}
        assert found["statuses"]["429"] > 0.3 * len(answers)
        assert found["statuses"].get("504", 0) + found["late"] < 0.05 * len(answers)
        assert found["goodput_of_capacity"] > 0.6
        assert found["refusal"]["p50_ms"] < 50
        assert found["refused_without_retry_after"] == 0
        assert recovered_s < 2

    with running(tmp_path, max_batch=1) as server:
        asyncio.run(flood(server.url))
