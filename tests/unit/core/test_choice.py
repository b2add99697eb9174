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
from service.core.engines.choice import check_agreement, open_network, samples
from service.core.engines.cores import Plan
from service.core.engines.onnx_runtime import open_onnx_runtime
from service.core.engines.openvino import OpenVinoInstance, open_openvino
from service.core.types import Network, Observer, UInt8Array
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
    return open_network(replace(CONFIG, engine=name, provider=provider), 2, Observer(), path)


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
def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelLoadError, match="cannot be loaded by OpenVINO: .*ENGINE=onnx"):
        open_openvino(path, tiny_models.contract(), PLAN)


@pytest.mark.usefixtures("openvino")
def test_a_network_that_wants_sizes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"wants the sizes of its images.*ENGINE=onnxruntime"):
        opened(write_with_sizes(tmp_path), "openvino")


def wrong(share: float, *, alone: bool, precision: str = "fp32") -> Network:
    """A network that errs on the first rows of every image, in one of its ways to run."""

    def err(batch: UInt8Array) -> UInt8Array:
        label_maps = tiny_models.expected_label_map(batch)
        rows = round(share * batch.shape[1])
        label_maps[:, :rows] = (label_maps[:, :rows] + 1) % 3
        return label_maps

    right = [Function(tiny_models.expected_label_map)] if alone else []
    instances = [*right, Function(err, full_device=alone)]
    contract = tiny_models.contract()
    return Network(Path("model.onnx"), contract, "cpu", instances, precision=precision)


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


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_rounded_networks_may_round_differently(path: Path, precision: str) -> None:
    session = open_onnx_runtime(path, provider="cpu", threads=1)
    near = wrong(0.02, alone=False, precision=precision)
    assert 0.97 <= check_agreement(near, session) < 0.999
    with pytest.raises(ModelLoadError, match="must 97.0%"):
        check_agreement(wrong(0.05, alone=False, precision=precision), session)


def test_sample_images_have_every_label_and_the_sizes_the_model_takes(tmp_path: Path) -> None:
    session = open_onnx_runtime(tiny_models.write_model(tmp_path), provider="cpu", threads=1)
    images = samples(session)
    assert [p.shape[1:3] for p in images] == [size for size in engine.SAMPLE_SIZES for _ in "12"]
    assert {*np.unique(tiny_models.expected_label_map(images[0]))} == {0, 1, 2}
    assert (samples(session)[0] == images[0]).all()
    spec = InputSpec(stride=1, max_side_px=200)
    small = tiny_models.write_model(
        tmp_path / "small", model_contract=tiny_models.contract(input_spec=spec)
    )
    sizes = [p.shape[1:3] for p in samples(open_onnx_runtime(small, provider="cpu", threads=1))]
    assert sizes == [(97, 131)] * 2
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
    with pytest.raises(ModelLoadError, match=r"is not installed: pip install .*\[cpu\]"):
        opened(path, "openvino")


def test_an_unknown_engine_is_refused(path: Path) -> None:
    with pytest.raises(
        ModelLoadError, match="engine 'tvm': choose one of auto, onnxruntime, openvino"
    ):
        opened(path, "tvm")


def test_on_cuda_there_is_only_onnx_runtime(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cuda = Network(path, tiny_models.contract(), "cuda", [])
    monkeypatch.setattr(engine, "open_onnx_runtime", lambda path, **options: on_cuda)
    monkeypatch.setattr(engine, "built_for", lambda provider: True)
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
        "from service.core.types import Observer\n"
        "config = SegmenterConfig(provider='cpu', engine='openvino')\n"
        "network = open_network(config, 1, Observer(), Path(sys.argv[1]))\n"
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


def can(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    """Gives the machine a CPU that can do that alone."""
    monkeypatch.setattr(engine, "cpu_flags", lambda: frozenset(flags))


def chosen(path: Path, precision: str, provider: str = "cpu") -> str:
    network = open_network(
        replace(CONFIG, provider=provider, precision=precision), 2, Observer(), path
    )
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
    can(monkeypatch, "avx512_vnni" if instructions else "avx2")
    assert chosen(beside(path), precision, provider) == wanted


AMX = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx_vnni")
ZEN5 = ("avx512_bf16", "avx512_vnni", "avx_vnni")
OLD = ("avx2",)


@pytest.mark.parametrize(
    ("flags", "has_int8", "wanted"),
    [
        (AMX, True, ("openvino", "int8")),
        (AMX, False, ("openvino", "bf16")),
        (ZEN5, True, ("onnxruntime", "int8")),
        (ZEN5, False, ("onnxruntime", "fp32")),
        (OLD, True, ("onnxruntime", "fp32")),
        (("asimddp",), True, ("onnxruntime", "int8")),
    ],
)
def test_the_engine_follows_the_processor(
    path: Path, flags: tuple[str, ...], has_int8: bool, wanted: tuple[str, str]
) -> None:
    if has_int8:
        beside(path)
    assert engine.cpu_choice(path, CONFIG, frozenset(flags)) == wanted


@pytest.mark.parametrize(
    ("asked", "flags", "wanted"),
    [
        ({"engine": "onnxruntime"}, AMX, ("onnxruntime", "int8")),
        ({"engine": "openvino"}, OLD, ("openvino", "fp32")),
        ({"precision": "fp32"}, AMX, ("onnxruntime", "fp32")),
        ({"precision": "bf16"}, ZEN5, ("openvino", "bf16")),
        ({"precision": "int8"}, OLD, ("onnxruntime", "int8")),
    ],
)
def test_what_is_asked_for_by_name_goes_before(
    path: Path, asked: dict[str, Any], flags: tuple[str, ...], wanted: tuple[str, str]
) -> None:
    beside(path)
    assert engine.cpu_choice(path, replace(CONFIG, **asked), frozenset(flags)) == wanted


@pytest.mark.parametrize(("name", "flags"), [("auto", OLD), ("onnxruntime", AMX)])
def test_bf16_that_cannot_be_had_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str, flags: tuple[str, ...]
) -> None:
    can(monkeypatch, *flags)
    with pytest.raises(ModelLoadError, match=r"bf16 takes OpenVINO and a CPU .*FCN_PRECISION=auto"):
        open_network(replace(CONFIG, engine=name, precision="bf16"), 2, Observer(), path)


@pytest.mark.usefixtures("openvino")
def test_bf16_is_the_file_rounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    can(monkeypatch, *ZEN5)
    network = open_network(replace(CONFIG, precision="bf16"), 2, Observer(), path)
    assert (network.engine, network.precision, network.path) == ("openvino", "bf16", path)
    image = street(24, 32)[None]
    for instance in network.instances:
        label_maps = instance.run(image)
        assert (label_maps == tiny_models.expected_label_map(image)).mean() > 0.97


@pytest.mark.parametrize("fault", ["missing", "broken", "disagrees"])
def test_where_openvino_fails_onnx_runtime_serves_and_one_line_tells(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    def refuse(*args: object, **options: object) -> Any:
        raise ModelLoadError(f"OpenVINO {fault}")

    can(monkeypatch, *AMX)
    if fault == "disagrees":
        need(find_spec("openvino") is not None, "the package openvino")
        monkeypatch.setattr(engine, "check_agreement", refuse)
    else:
        found = None if fault == "missing" else object()
        monkeypatch.setattr(engine, "find_spec", lambda name: found)
        monkeypatch.setattr(engine, "open_openvino", refuse)
    caplog.set_level("INFO")
    network = open_network(CONFIG, 2, Observer(), path)
    assert (network.engine, network.precision) == ("onnxruntime", "fp32")
    assert network.instead_of == ("" if fault == "missing" else "openvino")
    (line,) = [record.message for record in caplog.records]
    assert ("pip install 'fcn-serve[cpu]'" if fault == "missing" else f"OpenVINO {fault}") in line


def test_without_an_8_bit_file_auto_serves_the_other(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    can(monkeypatch, "avx512_vnni")
    assert chosen(path, "auto") == "fp32"


@pytest.mark.parametrize(
    ("precision", "says"),
    [
        ("int8", "int8.onnx is missing: .*fcn quantize --to int8"),
        ("fp16", "fp16.onnx is missing: .*fcn quantize --to fp16"),
        ("fp8", "precision 'fp8': choose one of auto, fp32, fp16, bf16, int8"),
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
    monkeypatch.setattr(engine, "built_for", lambda provider: True)
    can(monkeypatch, "avx512_vnni")
    beside(path)
    assert chosen(path, "auto", provider) == "fp32"  # an 8-bit file is for CPUs
    half_beside(path)
    assert chosen(path, "auto", provider) == "fp16"
    assert chosen(path, "fp32", provider) == "fp32"
