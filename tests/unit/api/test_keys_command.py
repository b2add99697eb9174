"""`fcn keys`: what it writes, what it leaves alone, and what it refuses."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from cli.main import main
from service.api.keys import Keys, parse
from service.api.limits import Limits

OLD = "# who may\r\nalice  alice-has-this-key\r\n\r\n# the shop\nbob bob-has-another-key role=admin"


def keys(path: Path, *words: str) -> int:
    return main(["keys", *words, f"--file={path}"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def write(path: Path, text: str, mode: int = 0o600) -> None:
    path.write_bytes(text.encode())
    path.chmod(mode)


def test_a_new_key_is_printed_once_and_let_in(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys(path, "add", "alice", "--requests-s=10", "--in-flight=2") == 0
    out, err = capsys.readouterr()
    key = out.strip()
    assert len(key) == 47 and key.startswith("fcn_") and key not in err
    text = path.read_text()
    assert key not in text and path.stat().st_mode & 0o777 == 0o600
    (caller,) = parse(text)
    assert (caller.name, caller.limits, caller.plain) == ("alice", Limits(10.0, None, 2), False)
    assert caller.created.endswith("Z")
    found = Keys(path, admin_key=None, rejected=lambda reason: None)
    assert found.admit([key]).name == "alice"
    assert list(path.parent.iterdir()) == [path]


def test_roles(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys(path, "add", "ops", "--role=admin")
    keys(path, "add", "both", "--role=admin", "--role=predict")
    roles = [caller.roles for caller in parse(path.read_text())]
    assert roles == [{"admin"}, {"admin", "predict"}]
    capsys.readouterr()


def test_the_rest_of_the_file_stays_as_it_is(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(path, OLD, 0o640)
    assert keys(path, "add", "carol") == 0
    text = path.read_bytes().decode()
    assert text.startswith(f"{OLD}\ncarol sha256:") and path.stat().st_mode & 0o777 == 0o640
    assert keys(path, "revoke", "alice") == 0
    assert path.read_bytes().decode() == text.replace("alice  alice-has-this-key\r\n", "")
    assert "took away 1 of alice's keys" in capsys.readouterr().err


def test_a_change_of_keys(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        keys(path, "add", "alice")
    last = path.read_text().splitlines()[-1]
    assert keys(path, "revoke", "alice", "--but-newest") == 0
    assert path.read_text() == f"{last}\n"
    assert keys(path, "revoke", "alice", "--but-newest") == 1
    assert "no other key of 'alice'" in capsys.readouterr().err
    assert keys(path, "revoke", "alice") == 0
    assert "lets nobody in" in capsys.readouterr().err


def test_the_list_has_no_keys(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(path, OLD)
    keys(path, "add", "carol", "--megapixels-s=2.5")
    key = capsys.readouterr().out.strip()
    assert keys(path, "list") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].startswith("bob  admin") and "in plain text" in out
    assert "carol  predict  megapixels_s=2.5  20" in out
    for secret in (key, "alice-has-this-key", "bob-has-another-key"):
        assert secret not in out
    assert keys(path, "list", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["keys"]
    assert [row["plain"] for row in rows] == [True, True, False]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("revoke", "carol"), "has no key of 'carol'"),
        (("add", "two words"), "fields|begin with a name"),
        (("add", "x", "--requests-s=0"), "requests_s is to be a number above 0"),
        (("add", "x", "--in-flight=some"), "in_flight"),
    ],
)
def test_what_is_refused_changes_nothing(
    path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    write(path, OLD)
    assert keys(path, *words) == 1
    out, err = capsys.readouterr()
    assert not out and err.startswith("fcn: ") and any(part in err for part in says.split("|"))
    assert path.read_bytes().decode() == OLD


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        (OLD, 0o644, "can be read by every user of this machine"),
        ("alice short\n", 0o600, "the key on line 1 has 5 characters"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_left_alone(
    path: Path, capsys: pytest.CaptureFixture[str], text: str, mode: int, says: str
) -> None:
    write(path, text, mode)
    for words in (("add", "x"), ("revoke", "alice"), ("list",)):
        assert keys(path, *words) == 1
        assert says in capsys.readouterr().err
    assert path.read_bytes().decode() == text


def test_without_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "list"]) == 1
    assert "give --file FILE, or set FCN_API_KEYS_FILE" in capsys.readouterr().err
    assert keys(tmp_path / "none", "list") == 1
    assert "No such file" in capsys.readouterr().err


def test_a_write_that_fails_leaves_the_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(path, OLD)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert keys(path, "add", "carol") == 1
    out, err = capsys.readouterr()
    assert "No space left" in err and not out
    assert path.read_bytes().decode() == OLD and list(path.parent.iterdir()) == [path]


def test_two_at_once_lose_nothing(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = [threading.Thread(target=keys, args=(path, "add", f"n{n}")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {caller.name for caller in parse(path.read_text())} == {f"n{n}" for n in range(8)}
    capsys.readouterr()


def test_a_link_stays_one(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = path.with_name("real")
    write(real, OLD)
    path.symlink_to(real)
    assert keys(path, "add", "carol") == 0
    assert path.is_symlink() and "carol" in real.read_text()
    capsys.readouterr()
