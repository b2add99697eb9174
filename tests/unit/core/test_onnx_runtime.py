from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from model.contract import METADATA_KEY, InputSpec
from service.core.engines import onnx_runtime as runtime
from service.core.engines.onnx_runtime import CpuInstance, open_onnx_runtime
from service.core.engines.warm_up import warm_up
from service.core.types import Network, UInt8Array
from service.errors import ModelLoadError
from tests import tiny_models
from tests.drawing import street
from tests.waiting import in_own_process

GOOD = {METADATA_KEY: tiny_models.contract().to_json()}
WITH_SIZES = replace(
    tiny_models.contract(), input=InputSpec(stride=1, sizes="image_sizes"), format_version=2
)


def open_cpu(path: Path) -> Network:
    return open_onnx_runtime(path, provider="cpu", threads=1)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[ort.SessionOptions]:
    """With what sessions are opened, from here on."""
    found: list[ort.SessionOptions] = []
    real = ort.InferenceSession

    def open_session(path: str, options: ort.SessionOptions, providers: object) -> object:
        found.append(options)
        return real(path, options, providers=providers)

    monkeypatch.setattr(ort, "InferenceSession", open_session)
    return found


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 24, 32), (3, 17, 31)])
def test_a_batch_of_any_size_gets_its_label_maps(
    tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    session = open_cpu(tiny_models.write_model(tmp_path))
    batch = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    label_maps = session.instances[0].run(batch)
    assert label_maps.dtype == np.uint8
    assert (label_maps == tiny_models.expected_label_map(batch)).all()


def test_the_contract_comes_from_the_file(tmp_path: Path) -> None:
    session = open_cpu(tiny_models.write_model(tmp_path, logits=True))
    assert session.contract == tiny_models.contract(logits=True)
    assert session.provider == "cpu"


def without(field: str) -> dict[str, str]:
    raw = tiny_models.contract().to_dict()
    del raw[field]
    return {METADATA_KEY: json.dumps(raw)}


def with_channels(count: int) -> onnx.ModelProto:
    model = tiny_models.build(metadata=GOOD)
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = count
    return model


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (tiny_models.build(), "has no contract .*'fcn_contract'.*fcn export"),
        (tiny_models.build(metadata={METADATA_KEY: "{"}), "the contract is not JSON"),
        (tiny_models.build(metadata=without("classes")), "field 'classes' is missing"),
        (tiny_models.build(metadata=GOOD, input_name="pixels"), r"'image'.*graph's are .*pixels"),
        (
            tiny_models.build(metadata=GOOD, input_type=TensorProto.FLOAT),
            r"'image' is tensor\(float\).*must be tensor\(uint8\) \[N, H, W, 3\]",
        ),
        (
            tiny_models.build(metadata=GOOD, label_type=TensorProto.INT64),
            r"'label_map' is tensor\(int64\).*must be tensor\(uint8\) \[N, H, W\]",
        ),
        (
            tiny_models.build(metadata={METADATA_KEY: tiny_models.contract(logits=True).to_json()}),
            "names an output 'logits' and the graph has .*label_map",
        ),
        (
            tiny_models.build(metadata={METADATA_KEY: WITH_SIZES.to_json()}),
            r"and the graph's are \['image'\]",
        ),
        (with_channels(1), r"'image' is tensor\(uint8\) .*1\], and must be"),
    ],
)
def test_a_file_that_breaks_its_contract_is_refused(
    tmp_path: Path, model: onnx.ModelProto, says: str
) -> None:
    path = tiny_models.write_file(model, tmp_path)
    with pytest.raises(ModelLoadError, match=says) as caught:
        open_cpu(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"not a model", b"\x08\x09" * 400])
def test_a_file_that_is_no_model_is_refused_in_one_line(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"model.onnx cannot be loaded") as caught:
        open_cpu(path)
    assert "\n" not in str(caught.value)


def test_warm_up_refuses_a_network_that_answers_in_another_size(tmp_path: Path) -> None:
    path = tiny_models.write_file(tiny_models.build(metadata=GOOD, shrink=True), tmp_path)
    with pytest.raises(ModelLoadError, match=r"shape \[1, 7, 8\], not \[1, 8, 8\]"):
        warm_up(open_cpu(path), [(8, 8)])


def test_warm_up_refuses_a_network_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: CpuInstance, batch: object) -> None:
        raise RuntimeError("no memory\nand a long trace")

    monkeypatch.setattr(CpuInstance, "run", fail)
    session = open_cpu(tiny_models.write_model(tmp_path))
    with pytest.raises(ModelLoadError, match="fails on a black 8x9 image: no memory$"):
        warm_up(session, [(8, 9)])


def test_an_input_of_fixed_size_is_still_an_image(tmp_path: Path) -> None:
    model = tiny_models.build(metadata=GOOD)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[1].dim_value, dims[2].dim_value = 24, 32
    path = tiny_models.write_file(model, tmp_path)
    assert open_cpu(path).instances[0].run(street(24, 32)[None]).shape == (1, 24, 32)


def test_a_contract_may_name_its_own_tensors(tmp_path: Path) -> None:
    contract = tiny_models.contract(input_spec=InputSpec(name="pixels"))
    model = tiny_models.build(metadata={METADATA_KEY: contract.to_json()}, input_name="pixels")
    session = open_cpu(tiny_models.write_file(model, tmp_path))
    assert (
        session.instances[0].run(street()[None])[0] == tiny_models.expected_label_map(street())
    ).all()


@pytest.mark.parametrize(
    ("threads", "copies_bytes", "sessions"), [(1, 1 << 20, 3), (1, 1000, 1), (2, 1000, 3)]
)
def test_instances_run_at_once_and_answer_alike(
    tmp_path: Path,
    threads: int,
    copies_bytes: int,
    sessions: int,
    opened: list[ort.SessionOptions],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each has a session, unless the copies of the weights are too large; those of several threads
    would share the threads, too."""
    monkeypatch.setattr(runtime, "COPIES_BYTES", copies_bytes)
    path = tiny_models.write_model(tmp_path)
    session = open_onnx_runtime(path, provider="cpu", threads=threads, instances=3)
    assert [options.intra_op_num_threads for options in opened] == [threads] * sessions
    assert not any(instance.full_device for instance in session.instances)
    images = [street(24 + i, 32)[None] for i in range(3)]
    with ThreadPoolExecutor(3) as pool:
        answers = pool.map(lambda instance, x: instance.run(x), session.instances, images)
        for image, label_maps in zip(images, answers, strict=True):
            assert (label_maps == tiny_models.expected_label_map(image)).all()


def test_a_lone_image_gets_threads_of_its_own(tmp_path: Path) -> None:
    path = tiny_models.write_model(tmp_path)
    session = open_onnx_runtime(path, provider="cpu", threads=1, instances=2, alone_threads=2)
    assert [instance.full_device for instance in session.instances] == [False, False, True]
    rgb = street()[None]
    assert (session.instances[2].run(rgb) == tiny_models.expected_label_map(rgb)).all()
    assert len(open_onnx_runtime(path, provider="cpu", threads=2, alone_threads=2).instances) == 1


def test_warm_up_tries_every_way_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lone image's session that fails must not be found out by a request."""
    path = tiny_models.write_model(tmp_path)
    real = CpuInstance.run
    used: list[object] = []

    def watched(self: CpuInstance, batch: UInt8Array) -> UInt8Array:
        used.append(self._session)
        return real(self, batch)

    monkeypatch.setattr(CpuInstance, "run", watched)
    session = open_onnx_runtime(path, provider="cpu", threads=1, instances=2, alone_threads=2)
    warm_up(session, [(8, 8)])
    assert len(used) == 3
    assert len({id(opened) for opened in used}) == 3


def resident_mb_over_many_sizes(path: Path) -> tuple[float, float]:
    """Returns the process's memory after 200 images of as many sizes, and after 800 more."""
    sizes = np.random.default_rng(0).integers(8, 257, (1000, 2))
    sizes[::100] = 256  # the largest comes early and again

    def resident_mb() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    run = open_cpu(path).instances[0].run
    for height, width in sizes[:200]:
        run(np.zeros((1, height, width, 3), np.uint8))
    before = resident_mb()
    for height, width in sizes[200:]:
        run(np.zeros((1, height, width, 3), np.uint8))
    return before, resident_mb()


def test_memory_levels_off_over_many_sizes(tmp_path: Path) -> None:
    """It was measured on the shipped model, too (bench/LOG.md)."""
    path = tiny_models.write_model(tmp_path)
    before, after = in_own_process(resident_mb_over_many_sizes, path)
    assert after < before + 5


@pytest.mark.parametrize(("version", "spins"), [("1.24.0", "0"), ("1.31.1", "1")])
def test_only_a_lone_image_spins_and_only_briefly(
    tmp_path: Path,
    opened: list[ort.SessionOptions],
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    spins: str,
) -> None:
    monkeypatch.setattr(ort, "__version__", version)
    path = tiny_models.write_model(tmp_path)
    open_onnx_runtime(path, provider="cpu", threads=1, instances=2, alone_threads=2)
    entry = "session.intra_op.allow_spinning"
    assert [o.get_session_config_entry(entry) for o in opened] == ["0", "0", spins]
    if spins == "1":
        assert opened[2].get_session_config_entry("session.intra_op.spin_duration_us") == "100"


def write_with_sizes(folder: Path) -> Path:
    """A model of contract format 2, which wants the sizes of its images, too."""
    model = tiny_models.build(metadata={METADATA_KEY: WITH_SIZES.to_json()})
    sizes = helper.make_tensor_value_info("image_sizes", TensorProto.INT64, ["N", 2])
    model.graph.input.append(sizes)
    return tiny_models.write_file(model, folder)


def test_a_network_that_wants_sizes_is_told_those_of_the_batch(tmp_path: Path) -> None:
    batch = np.stack([street(9, 13, seed=n) for n in range(2)])
    label_maps = open_cpu(write_with_sizes(tmp_path)).instances[0].run(batch)
    assert (label_maps == tiny_models.expected_label_map(batch)).all()
