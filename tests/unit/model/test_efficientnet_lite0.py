"""EfficientNet-Lite0: its windows, its size, and weights under the names of the PyTorch port."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cli.main import main
from model.backbones.conv_norm import ConvNorm
from model.backbones.efficientnet_lite0 import SPEC, EfficientNetLite0
from model.build import NetworkSpec, build
from model.contract import ClassInfo, Contract, TrainingData
from model.export.export import export
from model.fcn import Variant

WIDTH = 1 / 8
Arrays = dict[str, np.ndarray]


def narrow(fc6_channels: int = 0) -> EfficientNetLite0:
    torch.manual_seed(0)
    return EfficientNetLite0(fc6_channels, dropout=0.0, width=WIDTH).eval()


@pytest.fixture
def arrays() -> Arrays:
    """A file's content, as the port names it: convolutions and norms, classifier included."""
    random = np.random.default_rng(0)
    network = narrow()
    names = SPEC.names.normed["plain"]
    made: Arrays = {}
    for file, own in names.layers.items():
        if own == "head":
            shape: tuple[int, ...] = (16, 40, 1, 1)
        else:
            conv = network.get_submodule(own).get_submodule("conv")
            shape = tuple(conv.get_parameter("weight").shape)
        spread = (2 / math.prod(shape[1:])) ** 0.5
        made[f"{file}.weight"] = np.asarray(random.normal(0, spread, shape), np.float16)
    for norm, conv_name in names.after.items():
        channels = made[f"{conv_name}.weight"].shape[0]
        for part, low, high in (
            ("weight", 0.7, 1.4),
            ("bias", 0, 1),
            ("running_mean", -0.3, 0.3),
            ("running_var", 0.5, 2),
        ):
            made[f"{norm}.{part}"] = np.asarray(random.uniform(low, high, channels), np.float16)
    made["_fc.weight"], made["_fc.bias"] = np.ones((5, 16), np.float16), np.ones(5, np.float16)
    return made


def run_port(arrays: Arrays, x: Tensor) -> dict[str, Tensor]:
    """Computes as TensorFlow does, at sides that its stride-2 layers halve: the last map of each
    number of channels."""

    def layer(conv: str, norm: str, x: Tensor, stride: int = 1, linear: bool = False) -> Tensor:
        weight = torch.from_numpy(arrays[f"{conv}.weight"].astype(np.float32))
        groups = weight.shape[0] if "depthwise" in conv else 1
        total = weight.shape[2] - stride
        pads = (total // 2, total - total // 2)
        x = functional.conv2d(functional.pad(x, pads * 2), weight, stride=stride, groups=groups)
        mean, variance, scale, shift = (
            torch.from_numpy(arrays[f"{norm}.{part}"].astype(np.float32))
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = functional.batch_norm(x, mean, variance, scale, shift, eps=1e-3)
        return x if linear else functional.relu6(x)

    x = layer("_conv_stem", "_bn0", x, 2)
    ends = {}
    number = 0
    for stage, (count, stride) in enumerate(
        zip((1, 2, 2, 3, 3, 4, 1), (1, 2, 2, 2, 1, 2, 1), strict=True)
    ):
        for index in range(count):
            own = f"_blocks.{number}"
            y = layer(f"{own}._expand_conv", f"{own}._bn0", x) if stage else x
            first = stride if index == 0 else 1
            y = layer(f"{own}._depthwise_conv", f"{own}._bn1", y, first)
            y = layer(f"{own}._project_conv", f"{own}._bn2", y, linear=True)
            x = x + y if index else y
            number += 1
        ends[f"stage {stage}"] = x
    return ends


def test_imported_weights_compute_the_same(
    arrays: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "lite0.npz", **arrays)  # type: ignore[arg-type]
    words = ["--network", "efficientnet_lite0", "--width", str(WIDTH)]
    start = tmp_path / "start.npz"
    assert main(["import-weights", str(tmp_path / "lite0.npz"), *words, "-o", str(start)]) == 0
    said = capsys.readouterr().out
    assert "_bn0" in said and "folded    into stem" in said and "unknown" not in said
    assert said.count("dropped") == 2 and "weights for lite preprocessing" in said
    network = narrow(fc6_channels=0)
    network.load_imagenet(start)
    images = torch.rand(2, 3, 64, 96) * 255
    with torch.inference_mode():
        wanted = run_port(arrays, (images - 127) / 128)
        for restored in (False, True):
            if restored:
                network.restore_norms([images])
            maps = network(images)
            for stride, stage in ((4, 1), (8, 2), (16, 4), (32, 6)):
                own = wanted[f"stage {stage}"]
                scale = float(own.abs().max())
                torch.testing.assert_close(maps[stride], own, rtol=1e-3, atol=1e-3 * scale)
    # Without a layer the file is refused by its name.
    del arrays["_blocks.3._project_conv.weight"]
    np.savez(tmp_path / "cut.npz", **arrays)  # type: ignore[arg-type]
    assert main(["import-weights", str(tmp_path / "cut.npz"), *words, "-o", str(start)]) == 1
    assert "_blocks.3._bn2 follows no convolution" in capsys.readouterr().err


def test_it_has_the_parameters_of_lite0() -> None:
    """4.7 million of the paper's table, less the 1x1 head and the classifier."""
    with torch.device("meta"):
        network = EfficientNetLite0(fc6_channels=0)
    weights = sum(p.numel() for name, p in network.named_parameters() if "norm" not in name)
    assert weights == 4_652_008 - (320 * 1280 + 1280 * 1000 + 1000) - 2 * norms_of_lite0()
    assert network.channels == {4: 24, 8: 40, 16: 112, 32: 320}


def norms_of_lite0() -> int:
    """Channels of its norms, those of the head included."""
    with torch.device("meta"):
        network = EfficientNetLite0(fc6_channels=0)
    return 1280 + sum(
        layer.conv.out_channels for layer in network.modules() if isinstance(layer, ConvNorm)
    )


@pytest.mark.parametrize(("kernel", "first"), [(3, 0), (5, -1)])
def test_a_window_of_stride_2_is_centred_on_every_odd_row(kernel: int, first: int) -> None:
    layer = ConvNorm(1, 1, kernel, stride=2).eval()
    torch.nn.init.ones_(layer.conv.weight)
    for size in (12, 13):
        x = torch.zeros(1, 1, size, size)
        x[0, 0, 6] = 1
        with torch.inference_mode():
            seen = layer(x)[0, 0, :, 3].nonzero().flatten().tolist()
        rows = [i for i in range(-(-size // 2)) if 0 <= 6 - (2 * i + first) < kernel]
        assert seen == rows


@pytest.mark.parametrize("variant", ["16s", "4s"])
def test_it_is_exported(variant: Variant, tmp_path: Path) -> None:
    spec = NetworkSpec("efficientnet_lite0", variant, fc6_channels=8, skip_channels=4, width=WIDTH)
    network = build(spec, 3).eval()
    for layer in network.score_layers():
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)
    classes = tuple(ClassInfo(i, f"class{i}", (i, i, i)) for i in range(3))
    contract = Contract("lite", spec.architecture, classes, TrainingData("none", "CC0-1.0"))
    written, report = export(network, contract, tmp_path / "model.onnx")
    assert report.label_agreement >= 0.999
    assert written.input.context_px and written.input.context_px % 32 == 0
