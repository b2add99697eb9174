"""Recipes: what is refused names the file and the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.training.recipes import MakeConfig, raw_recipe
from training.config import ConfigError, load_config

CONFIGS = Path(__file__).resolve().parents[3] / "training" / "configs"


@pytest.fixture
def recipe(tmp_path: Path, streets: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw_recipe(streets)))
    return path


def test_defaults(make_config: MakeConfig) -> None:
    config = make_config()
    assert config.optimizer.kind == "adamw"
    assert config.data.train_split == "train"
    assert config.seed == 1337


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    assert load_config(path, ["data.root=somewhere"]).name == path.stem


def test_overrides(recipe: Path) -> None:
    config = load_config(
        recipe,
        [
            "schedule.epochs=7",
            "optimizer.head_lr=1e-2",
            "loss.class_weight_offset=null",
            "data.root=elsewhere",
            "augment.flip=no",
        ],
    )
    assert config.schedule.epochs == 7
    assert config.optimizer.head_lr == 0.01
    assert config.loss.class_weight_offset is None
    assert config.data.root == Path("elsewhere")
    assert config.augment.flip is False


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"batch": 8}, "batch: "),
        ({"schedule": {"epochs": 2, "epoch": 3}}, "schedule.epoch: "),
        ({"network": {"backbone": "mobilenet_v1", "depth": 3}}, "network.depth: "),
        ({"augment": {"crop": 3}}, "augment.crop: "),
        ({"schedule": {}}, "schedule.epochs: Field required"),
        ({"schedule": {"epochs": "many"}}, "schedule.epochs: "),
        ({"schedule": {"epochs": 0}}, "schedule.epochs: "),
        ({"network": {"backbone": "resnet"}}, "network.backbone: "),
        ({"network": {"backbone": "mobilenet_v1", "variant": "4s"}}, "network.variant: "),
        ({"optimizer": {"kind": "lion"}}, "optimizer.kind: "),
        ({"precision": "fp8"}, "precision: "),
        ({"augment": {"min_scale": 3.0}}, "augment: .*min_scale"),
        ({"loss": {"class_weight_offset": 1.0}}, "loss.class_weight_offset: "),
        ({"loss": {"reduction": "sum", "dice": 0.5}}, "loss.dice has no meaning"),
        ({"loss": {"sample": 0.0}}, "loss.sample: "),
        ({"loss": {"sample": 1.5}}, "loss.sample: "),
        ({"loss": {"sample_cell_px": 0}}, "loss.sample_cell_px: "),
        ({"loss": {"sample": 0.5, "dice": 0.5}}, "loss.dice takes every pixel"),
        ({"precision": "fp16"}, "precision: "),
        ({"optimizer": {"learned": "head"}}, "optimizer.learned: "),
        ({"optimizer": {"learned": "score"}}, "optimizer.learned=score: the norms of mobilenet_v1"),
        ({"network": {"backbone": "alexnet"}}, "network: .*alexnet has no inner maps"),
    ],
)
def test_wrong_fields(recipe: Path, change: dict[str, Any], complaint: str) -> None:
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | change))
    with pytest.raises(ConfigError, match=f"recipe.yaml: .*{complaint}"):
        load_config(recipe)


def test_every_wrong_field_is_named_at_once(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.epochs: .*; seed: "):
        load_config(recipe, ["schedule.epochs=0", "seed=x"])


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("schedule.epochs", "want section.field=value"),
        ("=3", "want section.field=value"),
        ("name.first=3", "'name' is not a section"),
        ("schedule.epochs=[1", "the value is not YAML"),
        ("schedule.epoch=3", "schedule.epoch: "),
    ],
)
def test_wrong_overrides(recipe: Path, override: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_config(recipe, [override])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"name: [unclosed", "is not YAML"),
        (b"- a\n- list\n", "want a mapping of sections, got list"),
        (b"", "want a mapping of sections, got NoneType"),
        (b"name: \xff\xfe", "is not UTF-8"),
    ],
)
def test_unreadable_recipes(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint):
        load_config(path)


def test_a_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the recipe .*none.yaml: No such file"):
        load_config(tmp_path / "none.yaml")
