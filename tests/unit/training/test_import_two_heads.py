"""`fcn import-weights` for the released nets of SIFT Flow, which have two heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.training.test_import_networks import (
    HEADS,
    Capture,
    caffe_file,
    command,
    failure,
    scores,
)
from tests.vgg_classifier import caffe_fcn
from training.checkpoint import load_checkpoint


@pytest.mark.parametrize("head", ["32s", "16s", "8s"])
def test_two_heads(head: str, tmp_path: Path, capsys: Capture) -> None:
    """siftflow-fcn*: 33 semantic classes and 3 geometric ones."""
    inputs, last, kernel = HEADS[head]
    blobs = caffe_fcn()
    for name, classes in (("sem", 33), ("geo", 3)):
        named = {f"{score}_{name}": channels for score, channels in inputs.items()}
        blobs = scores(blobs, classes, named, f"{last}_{name}", kernel)
    file = caffe_file(tmp_path / "a.caffemodel", blobs)
    assert command("vgg16", file, tmp_path / "a.pt", "--head", head) == 0
    assert "unknown" not in capsys.readouterr().out
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert checkpoint.dataset.head_sizes == {"sem": 33, "geo": 3}
    assert checkpoint.network.preprocessing == "siftflow"
    network = checkpoint.build_network()
    state = network.state_dict()
    for score in inputs:
        for name in ("sem", "geo"):
            got = state[f"{score}_{name}.weight"].numpy()
            assert np.array_equal(got, blobs[f"{score}_{name}"][0])
    with torch.inference_mode():
        assert network(torch.rand(1, 3, 20, 30)).shape == (1, 36, 20, 30)
    other = "8s" if head != "8s" else "16s"
    assert f"holds an FCN-{head}" in failure(capsys, "vgg16", file, "--head", other)
