"""docs/tutorials/train.md: from a folder of images and masks to a served model in four commands."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cli.main import main
from model.fcn import label_map
from tests.serving import ROOT, running
from tests.tutorials import page
from tests.unit.repository.pages import blocks
from training.checkpoint import load_checkpoint
from training.datasets import drawn

HEIGHT, WIDTH = 41, 59
SHORT = (
    "data.workers=0", "network.width=0.125", "augment.crop_height=40", "augment.crop_width=56",
    "schedule.batch_size=4", "schedule.epochs=6", "schedule.ema_decay=0.9",
    "optimizer.backbone_lr=1e-2", "optimizer.head_lr=1e-2", "threads=1",
)  # fmt: skip
"""The test adds this to the page's training command: a narrow network, small crops, few
iterations."""

pytestmark = pytest.mark.timeout(300)  # exporting takes most of a minute on a busy machine


def commands() -> list[list[str]]:
    """Words of the four, as the page has them."""
    (block,) = [
        block.text
        for block in blocks(page("train"))
        if "name=roofs" in block.text and "fcn serve" in block.text
    ]
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


def test_four_commands_lead_to_a_served_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer to one image is what the checkpoint says of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "training").symlink_to(ROOT / "training")
    data = tmp_path / "data" / "roofs"
    for split, count in (("train", 24), ("val", 2), ("test", 3)):
        drawn.write(data, split, count, HEIGHT, WIDTH, seed=0)
    train, evaluate, export, serve = commands()
    assert [words[:2] for words in (train, evaluate, export, serve)] == [
        ["fcn", "train"], ["fcn", "evaluate"], ["fcn", "export"], ["fcn", "serve"],
    ]  # fmt: skip
    assert main([*train[1:], *SHORT]) == 0
    capsys.readouterr()
    assert evaluate[-2:] == [">", "scores.json"]
    assert main(evaluate[1:-2]) == 0
    scores = capsys.readouterr().out
    (tmp_path / "scores.json").write_text(scores)
    assert 0.2 < json.loads(scores)["mean_iu"] < 1
    assert main(export[1:]) == 0
    assert serve == ["fcn", "serve"], "its repository is the one that fcn export writes to"
    image = data / "test" / "images" / "0000.jpg"
    with running(tmp_path / "model_repository") as server:
        answer = server.rest.post(
            "/segment",
            params={"model": "roofs"},
            content=image.read_bytes(),
            headers={"Content-Type": "image/jpeg"},
        )
        assert answer.status_code == 200, answer.text
        listed = server.rest.get("/v1/models/roofs").json()
    assert "house" in json.dumps(listed)
    got = np.array(Image.open(io.BytesIO(answer.content)))
    network = load_checkpoint(Path("runs/roofs/best.pt")).build_network()
    pixels = torch.from_numpy(np.array(Image.open(image))).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        wanted = label_map(network(pixels))[0].numpy()
    assert got.shape == wanted.shape == (HEIGHT, WIDTH) and len(np.unique(wanted)) >= 2
    # Equal logits up to rounding may fall either way.
    assert (got == wanted).mean() > 0.999
