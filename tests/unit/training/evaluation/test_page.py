"""`fcn evaluate --report` and `--flip`: the page, the intervals on it, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from cli.main import main
from tests.unit.training.recipes import Run
from training.checkpoint import load_checkpoint
from training.datasets import open_dataset
from training.evaluation.audit import Audit
from training.evaluation.predictors import NetworkPredictor

Capture = pytest.CaptureFixture[str]


def evaluate(source: Path, root: Path, *words: str) -> int:
    return main(["evaluate", str(source), "--data-root", str(root), "--threads", "1", *words])


def test_the_page_stands_alone(
    finished: Run, streets: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert evaluate(finished.last, streets, "--report", str(tmp_path / "out")) == 0
    table = capsys.readouterr().out
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.html"]
    assert not re.search(r"https?:|//|<script|<link|url\(", re.sub(r"base64,[^\"]*", "", page))
    assert "data:image/png;base64," in page
    mean_iu = re.search(r"^mean IU +([\d.]+)$", table, re.M)
    assert mean_iu and f"<td>mean IU</td><td>{mean_iu[1]}</td><td>[" in page
    for info in open_dataset("folder", streets, "test").info.classes:
        assert f"{info.name}</td>" in page
    assert page.count("<figure>") == 3  # of three images none is twice there
    assert "mirrored" not in page and "95th percentile" in page


def test_names_of_files_are_text(
    finished: Run, streets: Path, tmp_path: Path, capsys: Capture
) -> None:
    root = tmp_path / "data"
    for kind in ("images", "labels"):
        (root / "test" / kind).mkdir(parents=True)
        source = next(iter(sorted((streets / "test" / kind).iterdir())))
        (root / "test" / kind / f"<b>&{source.suffix}").write_bytes(source.read_bytes())
    (root / "classes.yaml").write_bytes((streets / "classes.yaml").read_bytes())
    assert evaluate(finished.last, root, "--report", str(tmp_path / "out")) == 0
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;." in page and "<b>" not in page


def test_a_mirror_image_gets_the_mirrored_answer(finished: Run, streets: Path) -> None:
    image = open_dataset("folder", streets, "test").image(0)
    network = load_checkpoint(finished.last).build_network()
    mirrored = np.ascontiguousarray(image[:, ::-1])
    both = NetworkPredictor(network, flip=True)
    # Of a half and its mirror image the same two probabilities are added.
    assert (both(mirrored)[:, ::-1] == both(image)).mean() > 0.999
    alone = NetworkPredictor(network)
    assert (alone(mirrored)[:, ::-1] == alone(image)).mean() < 0.999


def test_flip_is_said(finished: Run, streets: Path, tmp_path: Path, capsys: Capture) -> None:
    assert evaluate(finished.last, streets, "--flip", "--report", str(tmp_path)) == 0
    assert "mirrored too" in capsys.readouterr().out
    assert "each also mirrored" in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert evaluate(finished.last, streets, "--flip", "--json") == 0
    assert '"flip": true' in capsys.readouterr().out


@pytest.mark.parametrize("source", ["model.onnx", "http://127.0.0.1:9"])
def test_flip_is_for_checkpoints(source: str, streets: Path, capsys: Capture) -> None:
    assert evaluate(Path(source), streets, "--flip") == 1
    assert "--flip is for a checkpoint (.pt)" in capsys.readouterr().err


def audit_of(*agreements: float) -> Audit:
    """Two classes; of each image's 100 pixels of class 0 so large a share is right."""
    audit = Audit()
    for index, share in enumerate(agreements):
        target = np.zeros((10, 10), np.uint8)
        prediction = (np.arange(100).reshape(10, 10) >= 100 * share).astype(np.uint8)
        audit.add(index, {"": 2}, target, prediction, 0.1)
    return audit


def test_images_that_agree_leave_no_doubt() -> None:
    metrics, classes = audit_of(0.8, 0.8, 0.8).intervals()
    assert metrics["pixel accuracy"] == pytest.approx((0.8, 0.8))
    assert metrics["mean IU"] == pytest.approx((0.4, 0.4))  # class 1 is only predicted: 0
    assert classes == [pytest.approx((0.8, 0.8)), pytest.approx((0, 0))]


def test_the_interval_is_that_of_the_mean() -> None:
    """The mean of 100 draws of 0 or 1 lies within 1.96 standard errors of 0.5."""
    low, high = audit_of(*[0.0, 1.0] * 50).intervals()[0]["pixel accuracy"]
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.02)
    assert high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.02)


def test_worst_and_median() -> None:
    audit = audit_of(0.9, 0.1, 0.5, 0.7, 0.3)
    assert [image.index for image in audit.worst(2)] == [1, 4]
    assert [image.index for image in audit.median(1)] == [2]
    assert [image.index for image in audit.median(2)] == [2, 3]
