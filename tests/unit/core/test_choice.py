"""OpenVINO beside ONNX Runtime: the same labels, or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from model.contract import METADATA_KEY, InputSpec
from service.config import SegmenterConfig
from service.core.engines import choice as engine
from service.core.engines import openvino as openvino_runtime
from service.core.engines.choice import check_agreement, open_network, samples
from service.core.engines.cores import Plan
from service.core.engines.onnx_runtime import open_onnx_runtime
from service.core.engines.openvino import OpenVinoInstance, open_openvino
from service.core.types import Network, UInt8Array
from service.errors import ModelLoadError
from tests import tiny_models
from tests.conftest import need
from tests.drawing import street
from tests.unit.core.fakes import Function
from tests.unit.core.test_onnx_runtime import write_with_sizes

ROOT = Path(__file__).parents[3]
PLAN = Plan(instances=2, threads=1, alone_threads=2)
CONFIG = SegmenterConfig(instances=2, intra_op_threads=1, alone_threads=2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_models.write_model(tmp_path)


@pytest.fixture
def openvino() -> None:
    need(find_spec("openvino") is not None, "the package openvino")


def opened(path: Path, name: str, provider: str = "cpu") -> Network:
    return open_network(path, replace(CONFIG, engine=name, provider=provider), 2)


@pytest.mark.usefixtures("openvino")
def test_openvino_answers_as_onnx_runtime_does(path: Path) -> None:
    network = opened(path, "openvino")
    assert all(isinstance(one, OpenVinoInstance) for one in network.instances)
    assert network.contract == tiny_models.contract()
    assert [instance.full_device for instance in network.instances][-1]
    batch = np.random.default_rng(0).integers(0, 256, (3, 17, 31, 3), np.uint8)
    for instance in network.instances:
        label_maps = instance.run(batch)
        instance.run(255 - batch)  # which an answer outlives
        assert label_maps.dtype == np.uint8
        assert (label_maps == tiny_models.expected_label_map(batch)).all()


@pytest.mark.usefixtures("openvino")
def test_its_instances_run_at_once(path: Path) -> None:
    network = opened(path, "openvino")
    images = [street(24 + i % 3, 32 + i)[None] for i in range(12)]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda i: network.instances[i % 2].run(images[i]), range(12)))
    for image, label_maps in zip(images, answers, strict=True):
        assert (label_maps == tiny_models.expected_label_map(image)).all()


@pytest.mark.usefixtures("openvino")
@pytest.mark.parametrize(
    ("limit", "value", "kept"),
    # 9 is the one not used for longest; of a large model one size always fits.
    [("MAX_SIZES", 2, [(8, 4), (10, 4)]), ("MAX_BYTES", 1, [(10, 4)])],
)
def test_compiled_sizes_are_bounded(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    value: int,
    kept: list[tuple[int, int]],
) -> None:
    monkeypatch.setattr(openvino_runtime, limit, value)
    instance = open_openvino(path, tiny_models.contract(), Plan(1, 1, 1)).instances[0]
    assert isinstance(instance, OpenVinoInstance)
    for side in (8, 9, 8, 10):
        instance.run(np.zeros((1, side, 4, 3), np.uint8))
    assert list(instance._sizes) == kept


@pytest.mark.usefixtures("openvino")
def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelLoadError, match="cannot be loaded by OpenVINO: .*ENGINE=onnx"):
        open_openvino(path, tiny_models.contract(), PLAN)


@pytest.mark.usefixtures("openvino")
def test_a_network_that_wants_sizes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"wants the sizes of its images.*ENGINE=onnxruntime"):
        opened(write_with_sizes(tmp_path), "openvino")


def wrong(share: float, *, alone: bool) -> Network:
    """A network that errs on the first rows of every image, in one of its ways to run."""

    def err(batch: UInt8Array) -> UInt8Array:
        label_maps = tiny_models.expected_label_map(batch)
        rows = round(share * batch.shape[1])
        label_maps[:, :rows] = (label_maps[:, :rows] + 1) % 3
        return label_maps

    right = [Function(tiny_models.expected_label_map)] if alone else []
    instances = [*right, Function(err, full_device=alone)]
    return Network(Path("model.onnx"), tiny_models.contract(), "cpu", instances)


@pytest.mark.parametrize("alone", [False, True])
def test_a_disagreeing_engine_is_refused(path: Path, alone: bool) -> None:
    session = open_onnx_runtime(path, provider="cpu", threads=1)
    assert check_agreement(wrong(0.0, alone=alone), session) == 1.0
    with pytest.raises(ModelLoadError, match=r"gives 8[0-9.]+% .*must 99.9%: set FCN_ENGINE=onnx"):
        check_agreement(wrong(0.16, alone=alone), session)


def test_another_shape_is_no_agreement(path: Path) -> None:
    session = open_onnx_runtime(path, provider="cpu", threads=1)
    short = Function(lambda batch: batch[:, 1:, :, 0])
    with pytest.raises(ModelLoadError, match=r"gives 0.0%"):
        check_agreement(Network(path, tiny_models.contract(), "cpu", [short]), session)


@pytest.mark.parametrize(("share", "accepted"), [(0.02, True), (0.05, False)])
def test_quantised_networks_may_round_differently(
    tmp_path: Path, share: float, accepted: bool
) -> None:
    contract = replace(tiny_models.contract(), precision="int8")
    path = tiny_models.write_model(tmp_path, model_contract=contract)
    session = open_onnx_runtime(path, provider="cpu", threads=1)
    if accepted:
        assert 0.97 <= check_agreement(wrong(share, alone=False), session) < 0.999
        return
    with pytest.raises(ModelLoadError, match="must 97.0%"):
        check_agreement(wrong(share, alone=False), session)


def test_sample_images_have_every_label_and_the_sizes_the_model_takes(tmp_path: Path) -> None:
    session = open_onnx_runtime(tiny_models.write_model(tmp_path), provider="cpu", threads=1)
    images = samples(session)
    assert [p.shape[1:3] for p in images] == list(engine.SAMPLE_SIZES)
    assert {*np.unique(tiny_models.expected_label_map(images[0]))} == {0, 1, 2}
    assert (samples(session)[0] == images[0]).all()
    spec = InputSpec(stride=1, max_side_px=200)
    small = tiny_models.write_model(
        tmp_path / "small", model_contract=tiny_models.contract(input_spec=spec)
    )
    sizes = [p.shape[1:3] for p in samples(open_onnx_runtime(small, provider="cpu", threads=1))]
    assert sizes == [(97, 131)]
    spec = InputSpec(stride=1, max_side_px=64)
    none = tiny_models.write_model(
        tmp_path / "none", model_contract=tiny_models.contract(input_spec=spec)
    )
    with pytest.raises(ModelLoadError, match="takes none of the sizes 97x131"):
        samples(open_onnx_runtime(none, provider="cpu", threads=1))


@pytest.mark.usefixtures("openvino")
def test_an_engine_that_disagrees_does_not_serve(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disagree(candidate: Network, reference: Network) -> float:
        raise ModelLoadError("labels differ")

    monkeypatch.setattr(engine, "check_agreement", disagree)
    with pytest.raises(ModelLoadError, match="labels differ"):
        opened(path, "openvino")


def test_without_the_package(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModelLoadError, match=r"is not installed: pip install .*\[openvino\]"):
        opened(path, "openvino")


def test_an_unknown_engine_is_refused(path: Path) -> None:
    with pytest.raises(ModelLoadError, match="engine 'tvm': choose one of onnxruntime, openvino"):
        opened(path, "tvm")


def test_on_cuda_there_is_only_onnx_runtime(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cuda = Network(path, tiny_models.contract(), "cuda", [])
    monkeypatch.setattr(engine, "open_onnx_runtime", lambda path, **options: on_cuda)
    assert opened(path, "onnxruntime", "auto") is on_cuda
    with pytest.raises(ModelLoadError, match="OpenVINO runs on the CPU .*FCN_PROVIDER=cpu"):
        opened(path, "openvino", "auto")


@pytest.mark.usefixtures("openvino")
def test_openvino_reports_to_nobody(path: Path, tmp_path: Path) -> None:
    """Its converter would report to the makers; neither that code nor a consent file appears."""
    home = tmp_path / "home"
    home.mkdir()
    script = (
        "import json, sys, socket\n"
        "def refuse(*args): raise OSError('no network in this test')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from pathlib import Path\n"
        "from service.config import SegmenterConfig\n"
        "from service.core.engines.choice import open_network\n"
        "config = SegmenterConfig(provider='cpu', engine='openvino')\n"
        "network = open_network(Path(sys.argv[1]), config, 1)\n"
        "import numpy\n"
        "network.instances[0].run(numpy.zeros((1, 8, 8, 3), numpy.uint8))\n"
        "print(json.dumps([n for n, m in sys.modules.items() if m and n.startswith("
        "'openvino_telemetry')]))"
    )
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "ORT_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
    assert list(home.rglob("*")) == []


def beside(path: Path) -> Path:
    """An 8-bit file of the same model, told by its contract and by its bias towards blue."""
    small = replace(tiny_models.contract(), precision="int8")
    model = tiny_models.build(bias=(0.0, 0.0, 300.0), metadata={METADATA_KEY: small.to_json()})
    onnx.save(model, str(path.with_name(engine.INT8_FILE)))
    return path


def half_beside(path: Path) -> Path:
    """The same in 16 bits, with a bias towards green."""
    half = replace(tiny_models.contract(), precision="fp16")
    model = tiny_models.build(bias=(0.0, 300.0, 0.0), metadata={METADATA_KEY: half.to_json()})
    onnx.save(model, str(path.with_name(engine.FP16_FILE)))
    return path


_LABELS = {"fp32": 0, "fp16": 1, "int8": 2}
"""Grey in all three: red comes first of equals; the other files call everything green or blue."""


def chosen(path: Path, precision: str, provider: str = "cpu") -> str:
    network = open_network(path, replace(CONFIG, provider=provider, precision=precision), 2)
    grey = np.full((1, 2, 3, 3), 100, np.uint8)
    assert (network.instances[0].run(grey) == _LABELS[network.contract.precision]).all()
    return network.contract.precision


@pytest.mark.parametrize(
    ("precision", "instructions", "wanted"),
    [
        ("auto", True, "int8"),
        ("auto", False, "fp32"),
        ("fp32", True, "fp32"),
        ("int8", False, "int8"),
    ],
)
@pytest.mark.parametrize("provider", ["cpu", "auto"])
def test_the_file_follows_precision_and_cpu(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    instructions: bool,
    wanted: str,
    provider: str,
) -> None:
    monkeypatch.setattr(engine, "multiplies_int8", lambda: instructions)
    assert chosen(beside(path), precision, provider) == wanted


def test_without_an_8_bit_file_auto_serves_the_other(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "multiplies_int8", lambda: True)
    assert chosen(path, "auto") == "fp32"


@pytest.mark.parametrize(
    ("precision", "says"),
    [
        ("int8", "int8.onnx is missing: .*fcn quantize --to int8"),
        ("fp16", "fp16.onnx is missing: .*fcn quantize --to fp16"),
        ("fp8", "precision 'fp8': choose one of auto, fp32, fp16, int8"),
    ],
)
def test_a_precision_that_is_not_there_is_refused(path: Path, precision: str, says: str) -> None:
    with pytest.raises(ModelLoadError, match=says):
        chosen(path, precision)


@pytest.mark.parametrize("provider", ["cpu", "auto"])
def test_on_a_cpu_fp16_is_served_only_on_request(path: Path, provider: str) -> None:
    half_beside(path)
    assert chosen(path, "auto", provider) == "fp32"
    assert chosen(path, "fp16", provider) == "fp16"


@pytest.mark.parametrize("provider", ["cuda", "auto"])
def test_on_a_gpu_auto_takes_fp16_where_there_is_a_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    def on_gpu(path: Path, **options: Any) -> Network:
        opened = open_onnx_runtime(path, **{**options, "provider": "cpu"})
        return replace(opened, provider="cuda")

    monkeypatch.setattr(engine, "open_onnx_runtime", on_gpu)
    monkeypatch.setattr(engine, "multiplies_int8", lambda: True)
    beside(path)
    assert chosen(path, "auto", provider) == "fp32"  # an 8-bit file is for CPUs
    half_beside(path)
    assert chosen(path, "auto", provider) == "fp16"
    assert chosen(path, "fp32", provider) == "fp32"


def test_both_engines_give_the_logits(tmp_path: Path) -> None:
    need(find_spec("openvino") is not None, "OpenVINO: pip install 'fcn-serve[openvino]'")
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
