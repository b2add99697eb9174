"""On the CPU, where all is as on a GPU but the names of the memory."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from service.core.engines import binding
from service.core.engines.binding import BoundSession
from service.core.engines.capture import Captures
from service.core.engines.pinned import Cpu
from service.core.types import UInt8Array
from tests import tiny_models

CPU = "CPUExecutionProvider"


class Recording:
    """A session that notes the CUDA graph id and the thread of each run."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.runs: list[tuple[str | None, int]] = []

    def io_binding(self) -> Any:
        return self._session.io_binding()

    def run_with_iobinding(self, bound: Any, options: Any) -> None:
        self._note(options)
        self._session.run_with_iobinding(bound, options)

    def run(self, names: list[str], feeds: Any, options: Any) -> Any:
        self._note(options)
        return self._session.run(names, feeds, options)

    def _note(self, options: Any) -> None:
        graph = None if options is None else options.get_run_config_entry("gpu_graph_id")
        self.runs.append((graph, threading.get_ident()))


class Memory(Cpu):
    """Counts what is allocated."""

    def __init__(self) -> None:
        self.blocks: list[int] = []

    def host(self, nbytes: int) -> UInt8Array:
        self.blocks.append(nbytes)
        return super().host(nbytes)


def session(tmp_path: Path, *, logits: bool = False) -> Recording:
    path = tiny_models.write_model(tmp_path, logits=logits)
    return Recording(ort.InferenceSession(str(path), providers=[CPU]))


def bound(
    tmp_path: Path, *, graphs: bool = False, logits: bool = False
) -> tuple[BoundSession, Recording]:
    recording = session(tmp_path, logits=logits)
    captures = Captures() if graphs else None
    contract = tiny_models.contract(logits=logits)
    return BoundSession(recording, contract, Cpu(), captures), recording


def batch(*shape: int, seed: int = 0) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.parametrize("graphs", [False, True])
def test_label_maps_are_those_of_the_session(tmp_path: Path, graphs: bool) -> None:
    run, _ = bound(tmp_path, graphs=graphs)
    generator = np.random.default_rng(1)
    kept = []
    for seed in range(60):
        count, height, width = (int(generator.integers(1, most)) for most in (5, 40, 40))
        pixels = batch(count, height, width, seed=seed)
        if seed % 3 == 0:
            run.warm_up(pixels)
            kept.append((pixels, run(pixels)))
            pixels = batch(count, height, width, seed=seed + 1000)
        kept.append((pixels, run(pixels)))
    for pixels, label_maps in kept:  # also those whose buffers were used again since
        assert label_maps.dtype == np.uint8
        assert (label_maps == tiny_models.expected_label_map(pixels)).all()


def test_stacked_images_lie_where_the_device_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = bound(tmp_path)
    images = [batch(9, 7, seed=seed) for seed in range(3)]
    stacked = run.stack(images)
    monkeypatch.setattr(np, "copyto", None)  # a copy more would fail
    assert (run(stacked) == tiny_models.expected_label_map(np.stack(images))).all()
    again = run.stack([batch(9, 7, seed=9)] * 3)
    assert again.ctypes.data == stacked.ctypes.data


def test_views_of_the_callers_arrays_are_copied(tmp_path: Path) -> None:
    run, _ = bound(tmp_path)
    picture = batch(24, 24)[::-1, ::2]
    assert (run(picture[None])[0] == tiny_models.expected_label_map(picture)).all()


def test_memory_grows_to_the_largest_batch_and_no_further(tmp_path: Path) -> None:
    memory = Memory()
    run = BoundSession(session(tmp_path), tiny_models.contract(), memory)
    run(batch(1, 8, 8))
    assert memory.blocks == [1 << 20, 1 << 20]  # pictures and label maps
    run(batch(2, 500, 500))
    run(batch(1, 8, 8))
    run(batch(2, 500, 500))
    assert memory.blocks == [1 << 20, 1 << 20, 2 << 20]


def test_shapes_used_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, recording = bound(tmp_path)
    made: list[object] = []
    real = recording.io_binding

    def io_binding() -> Any:
        made.append(None)
        return real()

    monkeypatch.setattr(recording, "io_binding", io_binding)
    monkeypatch.setattr(binding, "MAX_SHAPES", 3)
    for width in (8, 9, 10, 8, 11):  # 9 has to go
        run(batch(1, 8, width))
    assert len(made) == 4
    for width in (8, 10, 11):
        run(batch(1, 8, width))
    assert len(made) == 4
    run(batch(1, 8, 9))
    assert len(made) == 5


def test_buffers_on_the_device_are_bounded_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = bound(tmp_path)
    monkeypatch.setattr(binding, "MAX_BYTES", 3 * 8 * 100)
    for width in (30, 40, 50, 60, 200):  # the last alone is above
        assert run(batch(1, 8, width)).shape == (1, 8, width)
        held = sum(3 * math.prod(shape) for shape in run._shapes)
        assert held <= 3 * 8 * 100 or list(run._shapes) == [(1, 8, 200)]


def test_memory_levels_off_over_a_thousand_shapes(tmp_path: Path) -> None:
    run, _ = bound(tmp_path)
    generator = np.random.default_rng(0)
    shapes = generator.integers((1, 8, 8), (5, 129, 129), (1000, 3))
    shapes[::100] = 4, 128, 128  # the largest comes early and again

    def resident_mb() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    for shape in shapes[:200]:
        run(np.zeros((*shape, 3), np.uint8))
    before = resident_mb()
    for shape in shapes[200:]:
        run(np.zeros((*shape, 3), np.uint8))
    assert resident_mb() < before + 5


def test_without_graphs_runs_have_no_options(tmp_path: Path) -> None:
    run, recording = bound(tmp_path)
    run.warm_up(batch(1, 8, 8))
    run(batch(1, 8, 8))
    assert recording.runs == [(None, threading.get_ident())] * 2


def test_graphs_are_of_warmed_up_shapes_each_with_its_number(tmp_path: Path) -> None:
    run, recording = bound(tmp_path, graphs=True, logits=True)
    run.warm_up(batch(1, 8, 8))
    run.warm_up(batch(2, 8, 8))
    for pixels in (batch(1, 8, 8), batch(2, 8, 8), batch(3, 8, 8), batch(1, 8, 8, seed=5)):
        assert (run(pixels) == tiny_models.expected_label_map(pixels)).all()
    run.warm_up(batch(2, 8, 8))  # is captured already
    label_maps, logits = run.scored(batch(1, 8, 8))
    assert logits.shape == (1, 3, 8, 8)
    assert (label_maps == tiny_models.expected_label_map(batch(1, 8, 8))).all()
    graphs = [graph for graph, _ in recording.runs]
    # Each capture is followed by a replay and an ordinary run, whose labels are compared.
    assert graphs == ["1", "1", "-1", "2", "2", "-1", "1", "2", "-1", "1", "2", "-1"]


def test_a_graph_that_does_not_see_new_pictures_is_refused(tmp_path: Path) -> None:
    """As one would that was captured with pictures in a place of their own."""
    run, recording = bound(tmp_path, graphs=True)
    real = recording.run_with_iobinding
    captured: list[str] = []

    def replay(bound: Any, options: Any) -> None:
        graph = options.get_run_config_entry("gpu_graph_id")
        if graph == "-1" or graph not in captured:
            captured.append(graph)
            real(bound, options)

    recording.run_with_iobinding = replay  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="does not see new pictures: set FCN_CUDA_GRAPHS=0"):
        run.warm_up(np.zeros((1, 8, 8, 3), np.uint8))
    pixels = batch(1, 8, 8, seed=4)
    assert (run(pixels) == tiny_models.expected_label_map(pixels)).all()


def test_a_graph_that_wants_its_pictures_elsewhere_still_sees_them_change(tmp_path: Path) -> None:
    """ONNX Runtime copies what is bound to another place once, at that moment."""
    run, recording = bound(tmp_path)
    real = recording.io_binding

    class Copying:
        def __init__(self) -> None:
            self._binding = real()

        def bind_ortvalue_input(self, name: str, value: Any) -> None:
            copy = ort.OrtValue.ortvalue_from_numpy(value.numpy().copy())
            self._binding.bind_ortvalue_input(name, copy)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._binding, name)

    recording.io_binding = Copying  # type: ignore[method-assign]
    recording.run_with_iobinding = (  # type: ignore[method-assign]
        lambda bound, options: recording._session.run_with_iobinding(bound._binding, options)
    )
    for seed in range(3):
        pixels = batch(2, 8, 8, seed=seed)
        assert (run(pixels) == tiny_models.expected_label_map(pixels)).all()


def test_a_graphs_buffers_stay_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay reads and writes the addresses of its capture, whatever was run between."""
    run, _ = bound(tmp_path, graphs=True)
    monkeypatch.setattr(binding, "MAX_SHAPES", 1)
    run.warm_up(batch(1, 8, 8))
    graph = run._graphs[1, 8, 8]
    addresses = graph.feed.data_ptr(), graph.labels.data_ptr()
    for width in range(9, 60):
        run(batch(4, 600, width))
    pixels = batch(1, 8, 8, seed=3)
    assert (run(pixels) == tiny_models.expected_label_map(pixels)).all()
    assert (graph.feed.data_ptr(), graph.labels.data_ptr()) == addresses
    assert graph.answer is None


def test_graphs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, recording = bound(tmp_path, graphs=True)
    monkeypatch.setattr(binding, "MAX_GRAPHS", 1)
    run.warm_up(batch(1, 8, 8))
    run.warm_up(batch(1, 9, 9))
    run(batch(1, 9, 9))
    assert [graph for graph, _ in recording.runs] == ["1", "1", "-1", "-1", "-1"]


def test_a_session_with_graphs_runs_on_one_thread_one_at_a_time(tmp_path: Path) -> None:
    run, recording = bound(tmp_path, graphs=True)
    run.warm_up(batch(1, 8, 8))
    inside = threading.Lock()
    real = recording.run_with_iobinding

    def alone(bound: Any, options: Any) -> None:
        assert inside.acquire(blocking=False)
        real(bound, options)
        inside.release()

    recording.run_with_iobinding = alone  # type: ignore[method-assign]
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                run(batch(1, 8, 8))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len({thread for _, thread in recording.runs}) == 1
    assert recording.runs[0][1] != threading.get_ident()


def test_what_the_runtime_raises_is_passed_on_and_the_next_run_goes_well(tmp_path: Path) -> None:
    for graphs in (False, True):
        run, recording = bound(tmp_path, graphs=graphs)
        real = recording.run_with_iobinding

        def fail(bound: Any, options: Any) -> None:
            raise RuntimeError("out of memory")

        recording.run_with_iobinding = fail  # type: ignore[method-assign]
        for call in (run, run.warm_up):
            with pytest.raises(RuntimeError, match="out of memory"):
                call(batch(1, 8, 8))
        recording.run_with_iobinding = real  # type: ignore[method-assign]
        assert run.warm_up(batch(1, 8, 8)).shape == (1, 8, 8)
        # The first number may be that of a graph with buffers that are gone.
        assert [graph for graph, _ in recording.runs][0] == ("2" if graphs else None)
