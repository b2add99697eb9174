"""A client with very many requests, and one with one, on a real server: who waits for whom, counted
in answers, not in seconds. `FLOOD=1000` queues as many as docs/reliability.md tells of."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from fcn_client.stubs import segmentation_pb2 as pb
from tests.fault.conftest import INFLIGHT, PATIENT, lasting
from tests.serving import Server, running

FLOOD = int(os.environ.get("FLOOD", "60"))
IMAGE = lasting(8)
MANY, ONE = "the-key-of-many-requests", "the-key-of-one-request"
LOW = pb.PRIORITY_LOW


@contextmanager
def flooded(server: Server, key: str, priority: Any = None) -> Iterator[Callable[[], int]]:
    """Queues the flood over one connection; yields what counts its answers until now."""
    request = pb.SegmentRequest(image=IMAGE, priority=priority)
    calls = [
        server.stub.Segment.future(request, metadata=(("x-api-key", key),), timeout=120)
        for _ in range(FLOOD)
    ]
    server.wait_for(INFLIGHT, 0.7 * FLOOD)
    yield lambda: sum(call.done() for call in calls)
    codes = Counter(call.code() for call in calls)
    assert codes.pop(grpc.StatusCode.OK) >= 0.7 * FLOOD
    assert set(codes) <= {grpc.StatusCode.RESOURCE_EXHAUSTED}, "which leaves room for others"


@pytest.mark.parametrize(
    ("keys", "priority"),
    [((MANY, ONE), None), ((), None), ((MANY, ONE), LOW), ((MANY, MANY), LOW)],
    ids=["by key", "by address", "interactive before bulk", "of one client, too"],
)
def test_who_has_one_request_does_not_wait_for_who_has_many(
    slow_repository: Path, tmp_path: Path, keys: tuple[str, ...], priority: Any
) -> None:
    settings: dict[str, Any] = {"max_inflight": 4 * FLOOD, "max_queue": 4 * FLOOD, **PATIENT}
    if keys:
        settings["api_keys_file"] = tmp_path / "keys"
        settings["api_keys_file"].write_text(f"many {MANY}\none {ONE}\n")
    first, other = keys or ("", "")
    # Who has no key is known by address.
    apart = httpx.HTTPTransport(local_address="127.0.0.2")
    with running(slow_repository, **settings) as server:
        headers = {"Content-Type": "image/png", "X-API-Key": other}
        with (
            httpx.Client(base_url=server.url, transport=apart, headers=headers, timeout=60) as one,
            flooded(server, first, priority) as answered,
        ):
            for _ in range(3):
                before, began_s = answered(), time.perf_counter()
                assert one.post("/segment", content=IMAGE).is_success
                after = answered()
                print(
                    f"{after - before} of {FLOOD} before it, {time.perf_counter() - began_s:.3f} s"
                )
                assert before < FLOOD, "the flood was over before"
                assert after - before < FLOOD / 3
