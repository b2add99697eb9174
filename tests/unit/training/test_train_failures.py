"""How a run fails: what it says, and that it costs no checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.training.recipes import MakeConfig, Run
from tests.unit.training.test_train import PER_EPOCH, TOTAL, assert_same_state
from training.checkpoint import CheckpointError, load_checkpoint
from training.config import ConfigError
from training.datasets import DatasetError
from training.learner import Learner
from training.loader import EpochPlan, StepSampler
from training.train import train


def test_a_loss_that_is_no_number(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(optimizer__kind="sgd", optimizer__head_lr=1e30)
    with pytest.raises(ConfigError, match=r"the loss is (nan|inf) at iteration \d.*lower"):
        train(config, tmp_path, run_log=None)


def test_no_root(tmp_path: Path, make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"data\.root is not set: .*data\.root=DIR"):
        train(make_config(data__root=None), tmp_path)


@pytest.mark.parametrize(
    ("error", "raised", "advice"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), ConfigError, "with 2 crops of 48x64"),
        (RuntimeError("[] DefaultCPUAllocator: can't allocate"), ConfigError, "lower schedule"),
        (RuntimeError("DataLoader worker (pid 5) is killed"), ConfigError, r"data\.workers"),
        (RuntimeError("a bug"), RuntimeError, "^a bug$"),
    ],
)
def test_errors_of_torch(
    tmp_path: Path,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    error: RuntimeError,
    raised: type[Exception],
    advice: str,
) -> None:
    """Those that the recipe can avoid get advice, others stay what they are."""

    def fail(*_args: object) -> float:
        raise error

    monkeypatch.setattr(Learner, "step", fail)
    with pytest.raises(raised, match=advice):
        train(make_config(), tmp_path, run_log=None)


def test_too_small_for_batch_norm(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(schedule__batch_size=1, augment__crop_height=32, augment__crop_width=32)
    with pytest.raises(ConfigError, match=r"too small for batch norm.*raise schedule\.batch_size"):
        train(config, tmp_path, run_log=None)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_label_is_named_in_one_line(
    tmp_path: Path, make_config: MakeConfig, streets: Path, workers: int
) -> None:
    root = tmp_path / "data"
    shutil.copytree(streets, root)
    for path in (root / "train/labels").iterdir():
        Image.fromarray(np.full((40, 56), 9, np.uint8)).save(path)
    config = make_config(
        data__root=str(root), data__workers=workers, loss__class_weight_offset=None
    )
    with pytest.raises(DatasetError) as raised:
        train(config, tmp_path / "run", run_log=None)
    assert "holds the label 9: want 0..3, or 255 for void" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_damaged_mid_epoch_costs_no_checkpoint(
    tmp_path: Path, make_config: MakeConfig, finished: Run, streets: Path, workers: int
) -> None:
    """It is named; once it is mended, the run goes on and ends as if nothing had happened."""
    root, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(streets, root)
    config = make_config(data__root=str(root), data__workers=workers)
    train(config, run, stop_after=PER_EPOCH, run_log=None)
    before = (run / "last.pt").read_bytes()
    # In the order of the second epoch, the last one read.
    index = list(StepSampler(EpochPlan(6, 2), config.seed, PER_EPOCH, TOTAL))[-1][-1][-1][1]
    victim = sorted((root / "train/images").iterdir())[index]
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=f"cannot read the image .*{victim.name}") as raised:
        train(config, run, resume=True, run_log=None)
    assert "\n" not in str(raised.value)
    assert (run / "last.pt").read_bytes() == before
    victim.write_bytes(whole)
    done = train(config, run, resume=True, run_log=None)
    assert_same_state(done, finished.checkpoint)


def test_a_full_disk_ends_the_run_and_keeps_the_epoch_before(tmp_path: Path, begun: Run) -> None:
    folder = begun.copy(tmp_path / "run")
    (folder / "last.tmp").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"cannot write the .*No space left.*--resume"):
        train(begun.config, folder, resume=True, run_log=None)
    assert load_checkpoint(folder / "last.pt").iteration == begun.checkpoint.iteration
    assert train(begun.config, folder, resume=True, run_log=None).iteration == TOTAL


def test_a_folder_with_a_run_in_it(tmp_path: Path, begun: Run) -> None:
    """It says which run is there, and what to do."""
    folder = begun.copy(tmp_path / "run")
    complaint = r"last\.pt exists: .*--resume or choose another --run.*'streets' at iteration 1,"
    with pytest.raises(ConfigError, match=complaint):
        train(begun.config, folder, run_log=None)
    (folder / "last.pt").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"It holds no checkpoint that can be read"):
        train(begun.config, folder, run_log=None)
    (folder / "last.pt").rename(folder / "best.pt")
    with pytest.raises(ConfigError, match=r"best\.pt exists, .*without a last\.pt.*another --run"):
        train(begun.config, folder, run_log=None)


@pytest.mark.parametrize("name", ["log.csv", "config.json"])
def test_a_folder_with_traces_of_a_run_without_a_checkpoint(
    tmp_path: Path, make_config: MakeConfig, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Nothing is lost by another try, but it is said."""
    (tmp_path / name).write_text("{}")
    train(make_config(), tmp_path, run_log=None, stop_after=1)
    said = f"{tmp_path} has {name} of an earlier run that saved no checkpoint"
    assert f"fcn: warning: {said}" in capsys.readouterr().err
