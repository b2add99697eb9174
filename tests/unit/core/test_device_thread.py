from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from queue import SimpleQueue

from service.core.batching.device_thread import DeviceThread


class Batch:
    def __init__(self, n: int) -> None:
        self.n = n


def test_batches_run_in_order_on_one_thread_and_what_follows_goes_first() -> None:
    seen: list[tuple[int, int]] = []
    begun, go_on = threading.Event(), threading.Event()

    def step(batch: Batch) -> Batch | None:
        begun.set()
        go_on.wait(60)
        seen.append((batch.n, threading.get_ident()))
        return Batch(batch.n + 10) if batch.n < 20 else None

    thread = DeviceThread("infer-0", step)
    thread.put(Batch(1))
    assert begun.wait(60)
    thread.put(Batch(2))
    thread.stop()
    go_on.set()
    thread.join()
    assert [n for n, _ in seen] == [1, 11, 21, 2, 12, 22], "and what was put before the stop is run"
    (ident,) = {ident for _, ident in seen}
    assert ident != threading.get_ident()


def test_a_thread_that_waits_keeps_no_picture() -> None:
    done: SimpleQueue[int] = SimpleQueue()

    def step(batch: Batch) -> None:
        done.put(batch.n)

    thread = DeviceThread("infer-0", step)
    batch = Batch(1)
    left = weakref.ref(batch)
    thread.put(batch)
    del batch
    assert done.get(timeout=60) == 1
    thread.stop()
    thread.join()
    gc.collect()
    assert left() is None


def test_the_interpreter_ends_after_the_run_at_hand_though_nobody_stopped_the_thread() -> None:
    program = """
import threading, time
from service.core.batching.device_thread import DeviceThread
begun = threading.Event()
def step(batch):
    begun.set()
    time.sleep(0.3)
    print("ran", batch, flush=True)
thread = DeviceThread("infer-0", step)
thread.put(1)
begun.wait(60)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert (ended.stdout, ended.stderr) == ("ran 1\n", "")
