"""Each recipe of the paper, in its own words but for where the data lie and how wide the nets are:
loaded, built, trained a step from the stage before it, on miniatures of its data set; two steps
where it is the first with its bases."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from model.backbones.caffe import TRUNCATIONS
from tests.unit.training import miniatures, nyu
from training.checkpoint import Checkpoint
from training.config import TrainConfig, load_config
from training.datasets import DATASETS, class_info
from training.train import Trainer

ROOT = Path(__file__).resolve().parents[3]
PAPER = ROOT / "training" / "configs" / "paper"
NAMES = sorted(path.stem for path in PAPER.glob("*.yaml"))
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
IMAGES = 8
"""Enough for the steps, to which the recipes' larger ones are cut."""


@pytest.fixture(scope="module")
def data_roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    train, val = [f"2008_{n:06}" for n in range(IMAGES)], ["2009_000001", "2009_000002"]
    voc = tmp_path_factory.mktemp("voc")
    miniatures.sbd(voc, {"train": train})
    miniatures.voc(voc, 2011, {"train": train, "val": val})
    context = tmp_path_factory.mktemp("context")
    classes = class_info(DATASETS["pascal_context"], context).classes
    names = [info.name for info in classes][1:]
    miniatures.pascal_context(context, {"train": train[:3], "val": val}, names)
    rooms = tmp_path_factory.mktemp("rooms")
    nyu.folders(rooms, {"trainval": ["5001", "5002", "5003"], "test": ["5004"]})
    outdoors = tmp_path_factory.mktemp("outdoors")
    miniatures.siftflow(outdoors, {"trainval": train[:3], "test": val})
    return {
        "sbd": voc,
        "voc2011": voc,
        "pascal_context": context,
        "siftflow_both": outdoors,
        **dict.fromkeys(("nyudv2", "nyudv2_rgbd", "nyudv2_hha", "nyudv2_rgb_hha"), rooms),
    }


@dataclass(frozen=True, slots=True)
class Run:
    """`path`: of the checkpoint, after `steps` from the weights `begun`."""

    config: TrainConfig
    begun: dict[str, Tensor]
    done: Checkpoint
    path: Path
    steps: int


def bases(path: Path) -> tuple[str, ...]:
    """The files that a recipe extends and that say more than one row of a table does."""
    parent = yaml.safe_load(path.read_text()).get("extends")
    if parent is None:
        return ()
    base = (path.parent / parent).resolve()
    return (*([base.name] if base.parent.name == "base" else []), *bases(base))


FIRST_WITH_ITS_BASES = {bases(PAPER / f"{name}.yaml"): name for name in reversed(NAMES)}.values()


class Runs:
    """Recipes as far as they were asked for, each run once."""

    def __init__(self, folder: Path, roots: dict[str, Path]) -> None:
        self.folder, self.roots = folder, roots
        self.done: dict[str, Run] = {}

    def __getitem__(self, name: str) -> Run:
        if name not in self.done:
            self.done[name] = self._run(name)
        return self.done[name]

    def _run(self, name: str) -> Run:
        config = narrow_config(name, self.roots)
        if config.init.checkpoint is not None:
            parent = self[config.init.checkpoint.parent.name].path
            changes = [f"init.checkpoint={parent}"]
            if config.init.hha_checkpoint is not None:
                hha = self[config.init.hha_checkpoint.parent.name].path
                changes.append(f"init.hha_checkpoint={hha}")
            config = narrow_config(name, self.roots, *changes)
        trainer = Trainer(config, self.folder / name, resume=False, run_log=None)
        begun = {key: value.clone() for key, value in trainer.network.state_dict().items()}
        steps = 2 if name in FIRST_WITH_ITS_BASES else 1
        done = trainer.run(stop_after=steps)
        return Run(config, begun, done, self.folder / name / "last.pt", steps)


def narrow_config(name: str, roots: dict[str, Path], *more: str) -> TrainConfig:
    path = PAPER / f"{name}.yaml"
    own = load_config(path)
    changes = [f"data.root={roots[own.data.dataset]}", "data.workers=0", "threads=1", *more]
    # As many images as let two count, where only a share of the loss's cells does.
    changes.append(
        f"schedule.accumulate={min(own.schedule.accumulate, round(2 / own.loss.sample))}"
    )
    if own.init.imagenet is not None:
        changes.append("init.imagenet=null")
    if own.network.backbone != "googlenet" and own.network.variant not in TRUNCATIONS:
        changes.append("network.fc6_channels=32")
    changes += ["network.width=0.0625", "data.allow_absent=true"]
    return load_config(path, changes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_roots: dict[str, Path]) -> Runs:
    torch.set_num_threads(1)
    return Runs(tmp_path_factory.mktemp("runs"), data_roots)


@pytest.mark.parametrize("name", NAMES)
def test_first_steps(runs: Runs, name: str) -> None:
    run = runs[name]
    config, done = run.config, run.done
    assert done.iteration == run.steps
    assert all(value.isfinite().all() for value in done.weights.values())
    moved = {key for key, value in done.weights.items() if not torch.equal(value, run.begun[key])}
    scores = {key for key in done.weights if key.startswith("score_")}
    assert scores
    assert scores <= moved
    if config.optimizer.trainable == "score_layers":
        assert all(key.startswith("score_") for key in moved)
    groups = done.optimizer["param_groups"]
    assert {group["momentum"] for group in groups} == {config.optimizer.momentum}
    lr = config.optimizer.head_lr
    # Weights at the rate and with decay, biases at twice the rate and without.
    assert {(group["lr"], group["weight_decay"]) for group in groups} == {(lr, 5e-4), (2 * lr, 0.0)}


@pytest.mark.parametrize("name", NAMES)
def test_of_every_recipe(name: str) -> None:
    """Every recipe has what the paper has in common; the name is the file's, so that runs/<name> is
    its own."""
    config = load_config(PAPER / f"{name}.yaml")
    assert config.name == name
    assert config.network.padding == "pad100"
    assert config.optimizer.backbone_lr == config.optimizer.head_lr
    assert (config.schedule.power, config.schedule.warmup_iterations) == (0, 0)
    assert config.augment.crop_height is None
    assert config.precision == "fp32"
    init = config.init
    if init.checkpoint is None:
        assert init.imagenet == Path(f"weights/{config.network.backbone}.npz")
    else:
        assert init.checkpoint == Path("runs") / init.checkpoint.parent.name / "last.pt"
        assert init.checkpoint.parent.name in NAMES
    if init.hha_checkpoint is not None:
        assert init.hha_checkpoint.parent.name in NAMES


@pytest.mark.parametrize(
    ("name", "reduction", "batch_size", "momentum", "lr", "length"),
    [
        ("voc-fcn32s", "sum", 1, 0.99, 1e-10, 100_000),
        ("voc-fcn16s", "sum", 1, 0.99, 1e-12, 100_000),
        ("voc-fcn8s", "sum", 1, 0.99, 1e-14, 100_000),
        ("voc-fcn8s-atonce", "sum", 1, 0.99, 1e-10, 300_000),
        ("voc-fcn32s-momentum-0.9", "sum", 1, 0.9, 1e-10, 100_000),
        ("voc-fcn32s-alexnet", "mean", 20, 0.9, 1e-4, 100_000),
        ("voc2011-fcn32s-alexnet", "mean", 20, 0.9, 1e-3, None),
        ("voc2011-fcn32s-vgg16", "mean", 20, 0.9, 1e-4, None),
        ("voc2011-fcn32s-googlenet", "mean", 20, 0.9, 5e-5, None),
        ("voc-fcn16s-light", "mean", 20, 0.9, 1e-6, None),
        ("voc-fcn32s-sample25", "mean", 80, 0.9, 1e-4, 1500),
        ("pascal_context-fcn16s", "sum", 1, 0.99, 1e-12, 400_000),
        ("nyudv2-fcn32s-rgbd", "sum", 1, 0.99, 1e-10, 100_000),
        ("nyudv2-fcn32s-rgb-hha", "sum", 1, 0.99, 1e-12, 100_000),
        ("nyudv2-fcn16s-rgb-hha", "sum", 1, 0.99, 1e-12, 100_000),
        ("siftflow-fcn32s", "sum", 1, 0.99, 1e-10, 100_000),
        ("siftflow-fcn16s", "sum", 1, 0.99, 1e-12, 100_000),
        ("siftflow-fcn8s", "sum", 1, 0.99, 1e-12, 100_000),
    ],
)
def test_numbers_of_the_paper(
    name: str, reduction: str, batch_size: int, momentum: float, lr: float, length: int | None
) -> None:
    """They arrive through everything that a recipe extends."""
    config = load_config(PAPER / f"{name}.yaml")
    schedule, optimizer = config.schedule, config.optimizer
    assert config.loss.reduction == reduction
    assert schedule.batch_size * schedule.accumulate == batch_size
    assert (optimizer.momentum, optimizer.head_lr) == (momentum, lr)
    assert schedule.iterations == length
    assert optimizer.weight_decay == 5e-4


@pytest.mark.parametrize("cells", [100, 50, 25])
def test_sampled_cells_times_images_stay_the_same(cells: int) -> None:
    config = load_config(PAPER / f"voc-fcn32s-sample{cells}.yaml")
    assert config.loss.sample == cells / 100
    assert config.loss.sample * config.schedule.batch_size * config.schedule.accumulate == 20


def test_the_page_has_every_recipe_and_no_other() -> None:
    named = set(re.findall(r"`paper/([\w.-]+)\.yaml`", PAGE))
    named |= set(re.findall(r"configs/paper/([\w.-]+)\.yaml", PAGE))
    assert named == set(NAMES)


def test_every_base_is_extended() -> None:
    bases = {path.relative_to(PAPER).as_posix() for path in PAPER.glob("base/*.yaml")}
    extended = set()
    for path in PAPER.rglob("*.yaml"):
        if parent := yaml.safe_load(path.read_text()).get("extends"):
            extended.add((path.parent / parent).resolve().relative_to(PAPER).as_posix())
    assert bases <= extended
