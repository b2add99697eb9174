"""Checkpoints come back as they were, and nothing else is taken for one."""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from model.build import NetworkSpec, build
from model.contract import ClassInfo, TrainingData
from tests.unit.training.recipes import equal
from training.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from training.datasets import DatasetInfo

SPEC = NetworkSpec("mobilenet_v1", variant="16s", fc6_channels=16, width=0.125)
INFO = DatasetInfo.single_head(
    (ClassInfo(0, "sky", (1, 2, 3)), ClassInfo(1, "road", (4, 5, 6), "where cars go")),
    TrainingData("drawn", "CC0-1.0", "here"),
)


def checkpoint(**changes: Any) -> Checkpoint:
    network = build(SPEC, 2)
    fields: dict[str, Any] = {
        "network": SPEC,
        "dataset": INFO,
        "config": {"name": "x", "schedule": {"epochs": 3}},
        "git_revision": "0123456789ab",
        "iteration": 5,
        "weights": network.state_dict(),
        "ema": {name: value + 1 for name, value in network.state_dict().items()},
        "optimizer": {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 0.1}]},
        "random_states": [torch.get_rng_state()],
        "best_mean_iu": 0.5,
        "val_scores": {"mean_iu": 0.5, "class_iu": {"sky": None}},
        "epoch_losses": [0.25, 0.125],
        "environment": {"torch": "2.13.0"},
    }
    return Checkpoint(**(fields | changes))


def test_round_trip(tmp_path: Path) -> None:
    saved = checkpoint()
    path = tmp_path / "new folder" / "last.pt"
    save_checkpoint(path, saved)
    loaded = load_checkpoint(path)
    for field in dataclasses.fields(Checkpoint):
        assert equal(getattr(saved, field.name), getattr(loaded, field.name)), field.name
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]  # no temporary file left


def test_build_network_has_the_averaged_weights() -> None:
    saved = checkpoint()
    assert saved.ema is not None
    assert equal(dict(saved.build_network().state_dict()), saved.ema)
    assert not saved.build_network().training
    plain = dataclasses.replace(saved, ema=None)
    assert equal(dict(plain.build_network().state_dict()), dict(saved.weights))


def test_weights_of_another_network() -> None:
    other = dataclasses.replace(SPEC, fc6_channels=8)
    with pytest.raises(CheckpointError, match="do not fit"):
        checkpoint(network=other).build_network()


def test_a_file_of_an_earlier_version_lacks_the_optional_fields(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint())
    fields = torch.load(path, weights_only=True)
    del fields["epoch_losses"], fields["cuda_random_states"], fields["environment"]
    torch.save(fields, path)
    assert load_checkpoint(path).epoch_losses == []


@pytest.mark.parametrize("geometric", [False, True])
def test_a_file_of_version_1_has_its_heads_in_other_fields(tmp_path: Path, geometric: bool) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint())
    fields = torch.load(path, weights_only=True)
    classes = fields["dataset"].pop("heads")[""]
    fields["dataset"] |= {"classes": classes, "geometric": classes[:1] if geometric else ()}
    del fields["dataset"]["modality"]
    torch.save(fields | {"format_version": 1}, path)
    heads = {"sem": INFO.classes, "geo": INFO.classes[:1]} if geometric else {"": INFO.classes}
    assert load_checkpoint(path).dataset == dataclasses.replace(INFO, heads=heads)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*none\.pt"):
        load_checkpoint(tmp_path / "none.pt")


class Payload:
    """Would run code when unpickled."""

    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Payload, "ran", True))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off", None])
def test_junk(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint())
    path.write_bytes(path.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(CheckpointError, match=r"last\.pt is not a checkpoint of fcn train"):
        load_checkpoint(path)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"format_version": 1, "weights": Payload()}, path)
    with pytest.raises(CheckpointError, match="is not a checkpoint") as raised:
        load_checkpoint(path)
    assert not Payload.ran
    assert "weights_only" not in str(raised.value)  # torch explains how to run it all the same


@pytest.mark.parametrize("content", [torch.zeros(3), {"weights": {}}, {"format_version": 99}])
def test_tensors_of_other_programs(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "last.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of this version"):
        load_checkpoint(path)


@pytest.mark.parametrize("field", ["weights", "optimizer", "dataset", "network", "iteration"])
def test_incomplete(tmp_path: Path, field: str) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint())
    fields = torch.load(path, weights_only=True)
    del fields[field]
    torch.save(fields, path)
    with pytest.raises(CheckpointError, match=f"incomplete.*{field}"):
        load_checkpoint(path)


def test_an_interrupted_write_keeps_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint(iteration=5))

    def fail(_fields: Any, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, checkpoint(iteration=6))
    assert load_checkpoint(path).iteration == 5


def test_a_full_disk_keeps_the_last_one(tmp_path: Path) -> None:
    """/dev/full answers as a full disk does, after torch has begun to write."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint(iteration=5))
    (tmp_path / "last.tmp").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"last\.pt: No space left on device; the one before"):
        save_checkpoint(path, checkpoint(iteration=6))
    assert load_checkpoint(path).iteration == 5
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_disk_that_fills_up_at_the_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems find out only when the file is to be made durable."""

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left on device; there was none before"):
        save_checkpoint(tmp_path / "last.pt", checkpoint())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CheckpointError, match=r"cannot write .*last\.pt: (File exists|Not a dir)"):
        save_checkpoint(tmp_path / "run" / "last.pt", checkpoint())


def test_file_and_folder_are_made_durable_before_and_after_the_renaming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    save_checkpoint(tmp_path / "last.pt", checkpoint())
    assert events == ["file", "rename", "folder"]


def test_a_file_of_before_there_were_several_processes(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    saved = checkpoint()
    save_checkpoint(path, saved)
    fields = torch.load(path, weights_only=True)
    fields["random_state"] = fields.pop("random_states")[0]
    fields["cuda_random_state"] = None
    del fields["cuda_random_states"]
    torch.save(fields, path)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded.random_states[0], saved.random_states[0])
    assert loaded.cuda_random_states == []
