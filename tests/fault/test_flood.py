"""Many times what the server can do, for a moment: those it takes it answers in time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench import load
from bench.http_client import Answer, Client
from cli._simulation import poisson
from tests.drawing import jpeg
from tests.serving import running, write_slow_model

SECONDS = 2.5
ALONE = 8
RUN = 'fcn_batch_size_sum{model="slow"}'


def ask(url: str, due: list[float]) -> list[Answer]:
    body = jpeg(np.full((32, 32, 3), 200, np.uint8))
    client = Client(url, load.request(url, body, "image/jpeg"), patience_s=60)
    try:
        return client.run(lambda finished: load.open_loop(client, due, finished))
    finally:
        client.close()


def infer_s(answers: list[Answer]) -> list[float]:
    """Reads how long the model took, by the server's word, for those with an answer."""
    return [load.stages_of(a.timing)["infer"] / 1000 for a in answers if a.status == 200]


def test_a_flood(tmp_path: Path) -> None:
    """How many a second it answers is for bench.versus to say, on a quiet machine: here the answers
    are counted, and held against what the model did meanwhile."""
    write_slow_model(tmp_path, turns=300)
    with running(tmp_path, instances=1, alone_threads=1, max_batch=1) as server:
        url = f"{server.url}/segment"
        calm = infer_s(ask(f"{url}?deadline_ms=60000", [0.0] * ALONE))
        run_before = server.metric(RUN)
        # In runs, not in seconds: how long one takes is up to who else is on this machine.
        deadline_s = 6 * sum(calm) / len(calm)
        url = f"{url}?deadline_ms={int(1000 * deadline_s)}"
        answers = ask(url, poisson(8 / min(calm), SECONDS, seed=1))
        assert {answer.status for answer in answers} <= {200, 429, 504}
        found = load.summary(answers, since_s=0.0, until_s=SECONDS, deadline_s=deadline_s)
        assert found["refused"] > 0.2 * len(answers)
        assert found["refusals_with_retry_after"] == found["refused"]
        assert found["expired"] + found["late"] < 0.3 * len(answers)
        # What the model ran was in time; without admission next to nothing is.
        run = server.metric(RUN) - run_before
        assert found["answered"] - found["late"] > 0.5 * run
        # And nobody was refused while it had nothing to do.
        during = infer_s(answers)
        assert run * sum(during) / len(during) > 0.3 * SECONDS
        # Soon after the flood a caller is answered at once again.
        (after,) = ask(url, [0.0])
        assert after.status == 200
