"""A session on a device with buffers that are used again: pictures in, label maps out.

Pictures go into page-locked memory, from there in one copy to an address on the device that stays
the same for a shape, and the label maps come back the same way. The calling thread waits for each
step; copies of one session and the kernels of another overlap, because each has a stream of its own
(#23319: a session has no way to take other streams for its copies). Issue numbers are those of
microsoft/onnxruntime.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from model.contract import Contract
from service.core.engines.capture import Captures
from service.core.engines.pinned import Place

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
T = TypeVar("T")
Shape = tuple[int, int, int]
"""N, height, width."""

MAX_SHAPES: Final = 32
"""Shapes whose buffers a session keeps, the ones used last; more are made again when they come."""
MAX_BYTES: Final = 256 * 1024 * 1024
"""Of the device's memory in those buffers. One shape always fits."""
MAX_GRAPHS: Final = 64
"""Captured shapes of a session. Each keeps its buffers and a part of the arena for good."""
LEAST_AGREEMENT: Final = 0.99
"""Share of the pixels of noise that a graph and an ordinary run give the same label."""
_ROUNDED: Final = 1 << 20
_NO_GRAPH: Final = -1
"""Reserved by ONNX Runtime: this run neither captures a CUDA graph nor replays one."""


@dataclass(eq=False, slots=True)
class _Shape:
    """What is bound for one shape. answer: a view of `_Host` memory, or None where the label maps
    stay on the device (`labels`) because a CUDA graph writes them. sizes: None where a
    network takes none."""

    feed: Any
    sizes: Any
    labels: Any
    answer: UInt8Array | None
    binding: Any
    options: Any


class BoundSession:
    """One instance of a network. Called by one thread at a time: see `Network.instances`."""

    def __init__(
        self, session: Any, contract: Contract, place: Place, captures: Captures | None = None
    ) -> None:
        """captures: what keeps captures apart from everything else on the GPUs; None where the
        session has no CUDA graphs."""
        self._session = session
        self._contract = contract
        self._place = place
        self._captures = captures
        self._pixels = _Host(place)
        self._labels = _Host(place)
        self._shapes: OrderedDict[Shape, _Shape] = OrderedDict()
        self._graphs: dict[Shape, _Shape] = {}
        self._numbers = count(1)
        # A graph belongs to the thread that captured it, and warm-up is not on the batcher's.
        self._thread = None if captures is None else ThreadPoolExecutor(1, "cuda-graphs")

    def __call__(self, batch: UInt8Array) -> UInt8Array:
        """uint8 RGB [N,H,W,3] -> class ids uint8 [N,H,W]. Raises whatever the runtime raises."""
        return self._alone(self._run, batch)

    def stack(self, images: Sequence[UInt8Array]) -> UInt8Array:
        """uint8 RGB [H,W,3] -> [N,H,W,3], where the next call need not copy them.

        Of the call after that it is no more than memory to write to.
        """
        with self._undisturbed():
            view = self._pixels.view((len(images), *images[0].shape))
        return np.stack(images, out=view)

    def warm_up(self, batch: UInt8Array) -> UInt8Array:
        """As a call, and where CUDA graphs are on, every later call of this shape is a replay."""
        if self._captures is None:
            return self(batch)
        return self._alone(self._capture, batch)

    def scored(self, batch: UInt8Array) -> tuple[UInt8Array, Float32Array]:
        """-> class ids uint8 [N,H,W] and logits float32 [N,C,H,W], without buffers kept: logits
        take a hundred times the memory, and are asked for seldom."""
        return self._alone(self._scored, batch)

    def _alone(self, run: Callable[[UInt8Array], T], batch: UInt8Array) -> T:
        """One run at a time, and with CUDA graphs always on the same thread: sessions that have
        them are not thread-safe (#18509)."""
        return run(batch) if self._thread is None else self._thread.submit(run, batch).result()

    def _undisturbed(self) -> AbstractContextManager[None]:
        return nullcontext() if self._captures is None else self._captures.none()

    def _run(self, batch: UInt8Array) -> UInt8Array:
        with self._undisturbed():
            found = self._graphs.get(_shape(batch)) or self._bound(_shape(batch))
            return self._answer(found, batch)

    def _capture(self, batch: UInt8Array) -> UInt8Array:
        shape = _shape(batch)
        if self._captures is None or shape in self._graphs or len(self._graphs) >= MAX_GRAPHS:
            return self._run(batch)
        with self._captures.one():
            # ONNX Runtime runs it as often as it takes to allocate everything, and then captures.
            # No number twice, not even of a capture that failed: it would replay that.
            graph = self._bind(shape, graph=next(self._numbers))
            label_maps = self._answer(graph, batch)
        noise = np.random.default_rng(0).integers(0, 256, batch.shape, np.uint8)
        with self._captures.none():
            replayed, usual = self._answer(graph, noise), self._answer(self._bound(shape), noise)
        if (replayed == usual).mean() < LEAST_AGREEMENT:
            raise RuntimeError(
                "its CUDA graph does not see new pictures: set FCN_CUDA_GRAPHS=0 for this model"
            )
        self._graphs[shape] = graph
        return label_maps

    def _answer(self, bound: _Shape, batch: UInt8Array) -> UInt8Array:
        self._place.use()
        pixels = self._pixels.view(batch.shape)
        if batch.ctypes.data != pixels.ctypes.data:  # not out of `stack`
            np.copyto(pixels, batch)
        # Waits until the device has the pixels: the session's stream would not know to.
        bound.feed.update_inplace(pixels)
        # Each time: should the graph want its pictures elsewhere, ONNX Runtime copies them when
        # they are bound, and would not see them change. Where they are taken as they are it costs
        # nothing.
        bound.binding.bind_ortvalue_input(self._contract.input.name, bound.feed)
        name = self._contract.input.sizes
        if name is not None:
            bound.sizes.update_inplace(self._contract.feeds(batch)[name])
            bound.binding.bind_ortvalue_input(name, bound.sizes)
        self._session.run_with_iobinding(bound.binding, bound.options)
        if bound.answer is not None:
            return bound.answer.copy()
        bound.binding.synchronize_outputs()
        label_maps: UInt8Array = bound.labels.numpy()
        # Off a GPU it is a copy already.
        return label_maps if label_maps.flags.owndata else label_maps.copy()

    def _scored(self, batch: UInt8Array) -> tuple[UInt8Array, Float32Array]:
        outputs = self._contract.outputs
        names = [outputs.label_map, outputs.logits]
        feeds = self._contract.feeds(batch)
        with self._undisturbed():
            label_maps, logits = self._session.run(names, feeds, self._options(_NO_GRAPH))
        return np.asarray(label_maps, np.uint8), np.asarray(logits, np.float32)

    def _bound(self, shape: Shape) -> _Shape:
        """Out of those used last, or new."""
        if self._labels.reserve(math.prod(shape)):
            self._shapes.clear()  # they point into memory that is to be freed
        if shape not in self._shapes:
            room = MAX_BYTES - _nbytes(shape)
            while self._shapes and (
                len(self._shapes) >= MAX_SHAPES or sum(map(_nbytes, self._shapes)) > room
            ):
                self._shapes.popitem(last=False)
            self._shapes[shape] = self._bind(shape)
        self._shapes.move_to_end(shape)
        return self._shapes[shape]

    def _bind(self, shape: Shape, graph: int | None = None) -> _Shape:
        """graph: the number of the CUDA graph to capture; None: no graph."""
        self._place.use()
        device = self._place.device, self._place.index
        feed = ort.OrtValue.ortvalue_from_shape_and_type([*shape, 3], np.uint8, *device)
        sizes = None
        if self._contract.input.sizes is not None:
            shape_of_sizes = [shape[0], 2]
            sizes = ort.OrtValue.ortvalue_from_shape_and_type(shape_of_sizes, np.int64, *device)
        answer: UInt8Array | None = None
        if graph is None:
            answer = self._labels.view(shape)
            labels = ort.OrtValue.ortvalue_from_numpy(answer, "cpu", 0)
        else:
            # A replay repeats what was captured, and copies to the host are not part of that.
            labels = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.uint8, *device)
        binding = self._session.io_binding()
        binding.bind_ortvalue_output(self._contract.outputs.label_map, labels)
        return _Shape(feed, sizes, labels, answer, binding, self._options(graph or _NO_GRAPH))

    def _options(self, graph: int) -> Any:
        """None where the session has no CUDA graphs."""
        if self._captures is None:
            return None
        options = ort.RunOptions()
        # Source of the key: onnxruntime_run_options_config_keys.h.
        options.add_run_config_entry("gpu_graph_id", str(graph))
        return options


class _Host:
    """A piece of the host's memory that grows to the largest batch yet, seen in other shapes."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._memory = np.empty(0, np.uint8)

    def reserve(self, nbytes: int) -> bool:
        """Whether it had to grow, so that earlier views are of other memory."""
        if nbytes <= self._memory.nbytes:
            return False
        self._memory = self._place.host(-(-nbytes // _ROUNDED) * _ROUNDED)
        return True

    def view(self, shape: tuple[int, ...]) -> UInt8Array:
        """uint8 of that shape, which starts where the memory does."""
        self.reserve(math.prod(shape))
        return self._memory[: math.prod(shape)].reshape(shape)


def _shape(batch: UInt8Array) -> Shape:
    images, height, width, _ = batch.shape
    return images, height, width


def _nbytes(shape: Shape) -> int:
    """Of its pictures on the device."""
    return 3 * math.prod(shape)
