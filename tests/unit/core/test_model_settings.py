from __future__ import annotations

from pathlib import Path

import pytest

from service.core.models.model_settings import ModelSettings, read_aliases, read_settings
from service.errors import ModelLoadError


def settings(folder: Path, text: str) -> ModelSettings:
    (folder / "model.toml").write_text(text)
    return read_settings(folder)


def test_without_a_file_all_versions_serve(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == ModelSettings()
    assert read_settings(tmp_path).candidates(["1", "10", "2"]) == ["10", "2", "1"]


def test_every_key_is_read(tmp_path: Path) -> None:
    text = 'versions = {latest = 2}\ndefault_version = 3\nmax_batch = 4\nwarm_up_sizes = ["36x48"]'
    text += '\ndescription = "Streets"'
    assert settings(tmp_path, text) == ModelSettings(2, (), "3", 4, ((36, 48),), "Streets")
    assert settings(tmp_path, 'versions = "all"') == ModelSettings()


def test_a_list_of_versions_is_served_whether_found_or_not(tmp_path: Path) -> None:
    listed = settings(tmp_path, "versions = [10, 2, 2]")
    assert listed.only == ("2", "10")
    assert listed.candidates(["1", "2"]) == ["10", "2"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version = 1", "unknown key 'version': there are versions, default_version"),
        ("versions = 3", r"versions is '3': give \"all\", \{latest = 2\}, or a list"),
        ("versions = []", r"versions is '\[\]'"),
        ("versions = {latest = 0}", 'give "all"'),
        ("versions = {newest = 1}", 'give "all"'),
        ("versions = [1, 0]", "versions has '0': a version is a whole number from 1 up"),
        ('versions = ["../../secret"]', r"versions has '../../secret': a version is"),
        ("versions = [true]", "versions has 'True'"),
        ("default_version = -1", "default_version has '-1'"),
        ("versions = [1]\ndefault_version = 2", "default_version 2 is not among versions"),
        ("max_batch = 0", "max_batch is 0: give a whole number from 1 up"),
        ('max_batch = "8"', "max_batch is '8'"),
        ('warm_up_sizes = ["36"]', r"give a list such as \[\"360x480\"\], height first"),
        ("warm_up_sizes = 36", "give a list such as"),
        ("description = 3", "description: give one line of text"),
        ('description = "a\\nb"', "description: give one line of text"),
        (f'description = "{"a" * 201}"', "description: give at most 200 characters"),
        ("versions = ", "model.toml cannot be read as TOML: "),
    ],
)
def test_a_wrong_setting_is_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ModelLoadError, match=says) as caught:
        settings(tmp_path, text)
    assert "model.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_settings_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelLoadError, match="cannot be read as TOML"):
        read_settings(tmp_path)


def test_aliases_name_a_model_or_a_version(tmp_path: Path) -> None:
    assert read_aliases(tmp_path) == {}
    (tmp_path / "aliases.toml").write_text('street = "camvid"\nstable = "camvid/2"')
    assert read_aliases(tmp_path) == {
        "street": ("camvid", None),
        "stable": ("camvid", "2"),
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("street = 1", "alias street is '1': give a text, 'model' or 'model/version'"),
        ('street = "../camvid"', "alias street is '../camvid'"),
        ('street = "camvid/latest"', "alias street is 'camvid/latest'"),
        ('street = "camvid/"', "alias street is 'camvid/'"),
        ('street = "camvid/1/2"', "alias street is 'camvid/1/2'"),
        ('street = ""', "alias street is ''"),
        ('"a street" = "camvid"', "alias 'a street': use letters, digits"),
        ('["street"]\nmodel = "camvid"', "alias street is"),
    ],
)
def test_a_wrong_alias_is_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "aliases.toml").write_text(text)
    with pytest.raises(ModelLoadError, match=says):
        read_aliases(tmp_path)


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 5000], ids=["a long number", "many lists"])
def test_what_the_parser_of_toml_chokes_on_is_refused(value: str, tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(f"max_batch = {value}")
    with pytest.raises(ModelLoadError, match="cannot be read as TOML"):
        read_settings(tmp_path)
