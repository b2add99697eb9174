"""Networks that OpenVINO compiles for each size: once, beside those that run, and kept on disk."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.config import SegmenterConfig
from service.core.engines import compile_cache
from service.core.engines import openvino as openvino_runtime
from service.core.engines.choice import open_network
from service.core.engines.compile_cache import CompileCache
from service.core.engines.cores import Plan
from service.core.engines.onnx_runtime import open_onnx_runtime
from service.core.engines.openvino import OpenVinoInstance, open_openvino
from service.core.types import Network, Observer
from tests import tiny_models
from tests.conftest import need
from tests.drawing import street
from tests.unit.core.fakes import WAIT_S
from tests.waiting import until

PLAN = Plan(instances=2, threads=1, alone_threads=2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    need(find_spec("openvino") is not None, "the package openvino")
    return tiny_models.write_model(tmp_path)


def test_a_network_that_goes_on_another_thread_leaves_signals_be(path: Path) -> None:
    """Run in a process of its own, for it would die."""
    script = """if True:
        import gc, signal, sys, threading
        from pathlib import Path
        from service.core.engines.cores import Plan
        from service.core.engines.openvino import open_openvino
        from tests import tiny_models
        from tests.drawing import street
        plan = Plan(instances=1, threads=1, alone_threads=0)
        networks = [open_openvino(Path(sys.argv[1]), tiny_models.contract(), plan)]
        networks[0].instances[0].run(street(8, 8)[None])
        end = threading.Thread(target=lambda: (networks.clear(), gc.collect()))
        end.start()
        end.join()
        signal.signal(signal.SIGUSR1, lambda *_: print("alive"))
        signal.raise_signal(signal.SIGUSR1)
    """
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


class Times:
    """Counts compilations, and holds those of one size."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def opened(path: Path, cache: Path | None = None, plan: Plan = PLAN) -> tuple[Network, Times]:
    times = Times()
    network = open_openvino(path, tiny_models.contract(), plan, cache=cache, compiled=times)
    return network, times


def instance(network: Network) -> OpenVinoInstance:
    found = network.instances[0]
    assert isinstance(found, OpenVinoInstance)
    return found


def ready(network: Network, height: int, width: int) -> threading.Event:
    event = threading.Event()
    assert network.prepare is not None
    network.prepare(height, width, event.set)
    return event


def hold_compiling(monkeypatch: pytest.MonkeyPatch, held: tuple[int, int]) -> threading.Event:
    """Lets no network of that size come to be before the event is set."""
    released = threading.Event()
    real = openvino_runtime._Compiler._compile

    def compile_(self: Any, size: tuple[int, int], options: dict[str, str]) -> Any:
        if size == held and not released.wait(WAIT_S):
            raise TimeoutError("the test never released it")
        return real(self, size, options)

    monkeypatch.setattr(openvino_runtime._Compiler, "_compile", compile_)
    return released


@pytest.mark.parametrize(
    ("limit", "value", "kept"),
    # 9 is the one not used for longest; of a large model or image one size always fits.
    [
        ("MAX_SIZES", 2, [(8, 4), (10, 4)]),
        ("MAX_BYTES", 1, [(10, 4)]),
        ("MAX_PIXELS", 72, [(8, 4), (10, 4)]),
        ("MAX_PIXELS", 1, [(10, 4)]),
    ],
)
def test_compiled_sizes_are_bounded(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    value: int,
    kept: list[tuple[int, int]],
) -> None:
    monkeypatch.setattr(openvino_runtime, limit, value)
    network, _ = opened(path, plan=Plan(1, 1, 1))
    for side in (8, 9, 8, 10):
        network.instances[0].run(np.zeros((1, side, 4, 3), np.uint8))
    assert list(instance(network)._sizes) == kept
    network.instances[0].forget()
    assert not instance(network)._sizes


def test_a_size_is_compiled_once_for_all_who_wait_and_stops_no_other(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, times = opened(path)
    assert ready(network, 8, 8).wait(WAIT_S)
    groups = len(times.seconds)
    assert groups == 2  # the instances that share the cores, and the one that takes all
    released = hold_compiling(monkeypatch, (9, 9))
    waiting = [ready(network, 9, 9) for _ in range(5)]
    assert ready(network, 8, 8).is_set()  # at once, on the caller's thread
    image = np.full((1, 8, 8, 3), 7, np.uint8)
    assert (network.instances[0].run(image) == 0).all()
    assert not any(event.is_set() for event in waiting)
    released.set()
    assert all(event.wait(WAIT_S) for event in waiting)
    assert len(times.seconds) == 2 * groups


def test_a_size_that_cannot_be_compiled_is_told_to_who_runs_it_and_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, _ = opened(path)
    image = np.zeros((1, 8, 8, 3), np.uint8)
    with monkeypatch.context() as broken:

        def fail(*args: object) -> None:
            raise RuntimeError("no memory")

        broken.setattr(openvino_runtime._Compiler, "_compile", fail)
        assert ready(network, 8, 8).wait(WAIT_S)
        with pytest.raises(RuntimeError, match="no memory"):
            network.instances[0].run(image)
    assert (network.instances[0].run(image) == 0).all()


def forbid_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("compiled, and not read from the cache")

    monkeypatch.setattr(openvino.Core, "compile_model", refuse)


def fill(path: Path, cache: Path) -> None:
    network, _ = opened(path, cache)
    for _ in range(4):
        assert ready(network, 8, 8).wait(WAIT_S)
    assert ready(network, 6, 10).wait(WAIT_S)
    counts = f'"8x8": {4}'
    until(lambda: any(counts in file.read_text() for file in cache.glob("*/sizes.json")))


def test_the_next_start_reads_what_was_compiled_the_usual_sizes_first(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    fill(path, cache)
    forbid_compiling(monkeypatch)
    monkeypatch.setattr(openvino_runtime, "SIZES_AT_START", 1)
    network, _ = opened(path, cache)
    until(lambda: all(one.has((8, 8)) for one in network.instances))  # type: ignore[attr-defined]
    assert list(instance(network)._sizes) == [(8, 8)]
    assert ready(network, 6, 10).wait(WAIT_S)
    image = np.random.default_rng(0).integers(0, 256, (1, 6, 10, 3), np.uint8)
    for one in network.instances:
        assert (one.run(image) == tiny_models.expected_label_map(image)).all()


def test_another_file_is_another_network(path: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    fill(path, cache)
    other = tiny_models.write_model(tmp_path / "other", bias=(0.0, 0.0, 300.0))
    network, _ = opened(other, cache)
    image = np.zeros((1, 8, 8, 3), np.uint8)
    assert (network.instances[0].run(image) == 2).all()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def turn_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, turn_a_bit, empty])
def test_a_damaged_blob_is_compiled_again_with_one_warning(
    path: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
) -> None:
    cache = tmp_path / "cache"
    fill(path, cache)
    for file in cache.glob("*/*"):  # the counts, too
        damage(file)
    network, _ = opened(path, cache)
    image = np.zeros((1, 8, 8, 3), np.uint8)
    for one in network.instances:
        assert (one.run(image) == 0).all()
        assert (one.run(image.reshape(1, 4, 16, 3)) == 0).all()
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [
        f"{next(cache.glob('*/8x8.blob'))} is damaged: it is made again"
    ]


@pytest.mark.parametrize("why", ["is a file", "is full"])
def test_a_folder_that_takes_nothing_costs_one_warning(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    why: str,
) -> None:
    cache = tmp_path / "cache"
    if why == "is a file":
        cache.touch()
    else:

        def full(source: str, target: Path) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
    network, _ = opened(path, cache)
    for side in (8, 9):
        assert ready(network, side, side).wait(WAIT_S)
        image = np.zeros((1, side, side, 3), np.uint8)
        assert (network.instances[0].run(image) == 0).all()
    (warning,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert "the next start compiles them again; set FCN_CACHE_DIR" in warning
    assert not list(tmp_path.glob("cache/*/*"))


def test_the_cache_is_bounded_and_lets_the_oldest_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_cache, "MAX_BYTES", 400)
    (tmp_path / "model").write_bytes(b"network")
    cache = CompileCache(tmp_path / "cache", tmp_path / "model", ("1",))
    for n in range(3):
        cache.save((n, n), bytes(100))
        (file,) = tmp_path.glob(f"cache/*/{n}x{n}.blob")
        os.utime(file, (n, n))
    assert cache.load((0, 0)) == bytes(100)  # used, and so the newest
    cache.save((3, 3), bytes(100))
    kept = sorted(file.name for file in tmp_path.glob("cache/*/*.blob"))
    assert kept == ["0x0.blob", "2x2.blob", "3x3.blob"]


def test_a_thousand_sizes_are_counted_in_bounded_space(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"network")
    cache = CompileCache(tmp_path / "cache", tmp_path / "model", ("1",))
    for side in range(1000):
        if cache.count((side, side)):
            cache.save_counts()
        cache.count((7, 7))
    cache.save_counts()
    again = CompileCache(tmp_path / "cache", tmp_path / "model", ("1",))
    assert again.often(1) == [(7, 7)]
    assert len(again.often(5000)) <= compile_cache._MAX_COUNTED
    assert CompileCache(tmp_path / "cache", tmp_path / "model", ("2",)).often(1) == []


def test_both_engines_give_the_logits(tmp_path: Path) -> None:
    need(find_spec("openvino") is not None, "the package openvino")
    path = tiny_models.write_model(tmp_path, logits=True)
    plan = Plan(instances=2, threads=1, alone_threads=0)
    session = open_onnx_runtime(path, provider="cpu", threads=1, instances=2)
    other = open_openvino(path, session.contract, plan)
    batch = np.stack([street(9, 13, seed=n) for n in range(2)])
    for network in (session, other):
        assert len(network.instances) == 2
        for instance in network.instances:
            label_maps, logits = instance.run_with_logits(batch)
            assert (label_maps == tiny_models.expected_label_map(batch)).all()
            assert (logits == tiny_models.expected_logits(batch)).all()


@pytest.mark.parametrize("differs", [False, True])
def test_without_equal_answers_there_is_no_copy_for_lone_images(
    path: Path, monkeypatch: pytest.MonkeyPatch, differs: bool
) -> None:
    real = OpenVinoInstance.run

    def run(self: OpenVinoInstance, batch: np.ndarray[Any, np.dtype[np.uint8]]) -> object:
        label_maps = real(self, batch)
        if differs and self.full_device:
            label_maps[0, 0, 0] = (label_maps[0, 0, 0] + 1) % 3
        return label_maps

    monkeypatch.setattr(OpenVinoInstance, "run", run)
    config = SegmenterConfig(provider="cpu", engine="openvino", precision="fp32", alone_threads=2)
    network = open_network(config, 2, Observer(), path)
    assert network.engine == "openvino"
    assert [one.full_device for one in network.instances] == [False, False] + [True] * (not differs)
