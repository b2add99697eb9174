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
        ({"schedule": {}}, "schedule: .*want epochs or iterations, got neither"),
        ({"schedule": {"epochs": 1, "iterations": 5}}, "schedule: .*iterations, got both"),
        ({"schedule": {"iterations": 0}}, "schedule.iterations: "),
        ({"data": {"dataset": "folder", "mask": "objects"}}, "data.mask: "),
        ({"augment": {"crop_height": None}}, "augment: .*want both, or null for both"),
        ({"augment": {"jitter_px": 32}}, "augment: .*jitter_px shifts whole images"),
        ({"optimizer": {"bias_lr_factor": 0}}, "optimizer.bias_lr_factor: "),
        ({"schedule": {"epochs": "many"}}, "schedule.epochs: "),
        ({"schedule": {"epochs": 0}}, "schedule.epochs: "),
        ({"network": {"backbone": "resnet"}}, "network: .*no backbone 'resnet'"),
        ({"network": {"backbone": "mobilenet_v1", "variant": "2s"}}, "network.variant: "),
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
        ({"optimizer": {"trainable": "head"}}, "optimizer.trainable: "),
        (
            {"optimizer": {"trainable": "score_layers"}},
            "optimizer.trainable=score_layers: the norms of mobilenet_v1",
        ),
        (
            {"data": {"dataset": "folder", "shown": "all", "mask": "all"}},
            "data.shown is called data.mask now",
        ),
        ({"network": {"backbone": "alexnet"}}, "network: .*alexnet has no inner map"),
    ],
)
def test_wrong_fields(recipe: Path, change: dict[str, Any], complaint: str) -> None:
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | change))
    with pytest.raises(ConfigError, match=f"recipe.yaml: .*{complaint}"):
        load_config(recipe)


def test_former_names_are_taken(recipe: Path) -> None:
    """From files and from the command line, as people wrote them."""
    raw = yaml.safe_load(recipe.read_text())
    raw["network"] = {"backbone": "vgg16", "fc6_channels": 8}
    raw["optimizer"] = {"learned": "score"}
    recipe.write_text(yaml.safe_dump(raw))
    config = load_config(recipe, ["data.shown=shape"])
    assert (config.optimizer.trainable, config.data.mask) == ("score_layers", "shape")


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
        ("name=2024-13-01", "the value is not YAML"),
        ("schedule.epoch=3", "schedule.epoch: "),
        ("extends=base.yaml", "extends: Extra inputs"),
    ],
)
def test_wrong_overrides(recipe: Path, override: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_config(recipe, [override])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"name: [unclosed", "is not YAML"),
        (b"name: 2024-13-01", "is not YAML"),
        (b"[" * 5000, "is not YAML"),
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


def write(path: Path, **content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_recipe_may_extend_another(recipe: Path, tmp_path: Path) -> None:
    """Field by field, over two files in two folders; the overrides come last."""
    write(
        tmp_path / "base/middle.yaml",
        extends="../recipe.yaml",
        schedule={"epochs": None, "iterations": 40, "batch_size": 3},
        loss={"class_weight_offset": None},
    )
    path = write(
        tmp_path / "heir.yaml",
        extends="base/middle.yaml",
        name="heir",
        schedule={"batch_size": 4},
        network={"variant": "16s"},
    )
    config, base = load_config(path, ["seed=7", "schedule.iterations=50"]), load_config(recipe)
    assert (config.name, config.seed) == ("heir", 7)
    assert (config.schedule.iterations, config.schedule.batch_size) == (50, 4)
    assert config.schedule.warmup_iterations == base.schedule.warmup_iterations == 2
    assert config.loss.class_weight_offset is None
    assert (config.loss.dice, config.data) == (base.loss.dice, base.data)
    assert (config.network.variant, config.network.fc6_channels) == ("16s", 16)
    assert load_config(recipe) == base


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (
            {"a": "none.yaml"},
            r"cannot read the recipe .*none.yaml, which .*a.yaml extends: No such",
        ),
        ({"a": "a.yaml"}, r"extends: .* in a circle, a.yaml -> a.yaml"),
        ({"a": "b.yaml", "b": "a.yaml"}, r"b.yaml: extends: .*circle, a.yaml -> b.yaml -> a.yaml"),
        ({"a": ["b.yaml"], "b": None}, r"a.yaml: extends: want the path of one recipe, got \['b"),
        ({"a": ""}, r"extends: want the path of one recipe, got ''"),
    ],
)
def test_what_cannot_be_extended(tmp_path: Path, files: dict[str, Any], complaint: str) -> None:
    for name, parent in files.items():
        write(tmp_path / f"{name}.yaml", extends=parent)
    with pytest.raises(ConfigError, match=complaint):
        load_config(tmp_path / "a.yaml")


def test_a_wrong_field_of_what_is_extended(recipe: Path, tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", schedule={"epoch": 1})
    path = write(tmp_path / "heir.yaml", extends="base.yaml", name="heir")
    with pytest.raises(ConfigError, match=r"heir.yaml: .*schedule.epoch: Extra"):
        load_config(path)


def test_the_length_of_a_run(make_config: MakeConfig) -> None:
    assert make_config(schedule__epochs=4).schedule.total_iterations(25) == 100
    counted = make_config(schedule__epochs=None, schedule__iterations=30)
    assert counted.schedule.total_iterations(25) == 30


def test_a_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the recipe .*none.yaml: No such file"):
        load_config(tmp_path / "none.yaml")
