"""The file of API keys: what is in it, what is wrong with it, and when it is read again."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import hmac
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.api import keys as module
from service.api.keys import Keys, line_of, offered, parse
from service.api.limits import FREE_GUESSES, Limits
from service.changes import file_stamp
from service.errors import LimitExceeded, NotAllowed, NotAuthenticated, StartError
from tests.waiting import soon

ALICE, BOB, CAROL = "alice-has-this-key", "bob/has+another=1", "carol.is~the#third"
TEXT = f"# callers\n\nalice {ALICE}\n  bob\t{BOB}  \r\n#carol {CAROL}\n"


def keys(path: Path, text: str = TEXT, admin_key: str | None = None) -> tuple[Keys, list[str]]:
    """And what the observer is told."""
    path.write_text(text)
    path.chmod(0o600)
    told: list[str] = []
    return Keys(path, admin_key=admin_key, rejected=told.append), told


def write(path: Path, text: str) -> None:
    """Writes by a file beside it: a moment at which it is half written would be another test."""
    path.with_name("new").write_text(text)
    path.with_name("new").replace(path)


def look_twice(found: Keys) -> None:
    found.look()
    found.look()


def lets_in(found: Keys, key: str) -> bool:
    try:
        found.admit([key])
    except NotAuthenticated:
        return False
    return True


def test_names_and_keys() -> None:
    assert [caller.name for caller in parse(TEXT)] == ["alice", "bob"]
    assert [caller.name for caller in parse(f"a {ALICE}\na {BOB}")] == ["a", "a"], "to change keys"
    assert parse("\n# nobody\n") == ()
    assert parse(f"a {'k' * 16}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"\n{ALICE}\n", "line 2 has 1 words: write NAME KEY"),
        (f"alice {ALICE} # since May", "line 1 has 5 words.*lines of their own"),
        (f"{BOB} bob", "line 1 does not begin with a name"),
        (f"{'n' * 65} {ALICE}", "line 1 does not begin with a name"),
        (f"# x\nalice {'k' * 15}", "key on line 2 has 15 characters: give it 16 or more"),
        ("alice schlüssel-zum-garten", "key on line 1 has characters that a header cannot"),
        ("alice key-with-\x00-in-the-middle", "characters that a header cannot"),
        (f"alice {ALICE}\n\nbob {ALICE}", "lines 1 and 3 have the same key"),
        ("alice the-admin-key-itself", "line 1 is the admin key, which opens more"),
    ],
)
def test_what_is_wrong_is_told_by_its_line_and_without_the_key(text: str, says: str) -> None:
    with pytest.raises(StartError, match=says) as caught:
        parse(text, admin_key="the-admin-key-itself")
    for word in text.split():
        assert len(word) < 10 or word not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ("role=root", "line 1: of role, created and limits; use each|role is predict, admin"),
        ("requests_s=many", "line 1: .*requests_s is to be a number above 0"),
        ("role", "line 1 has 3 words"),
        ("since=May", "use each of requests_s, megapixels_s, in_flight once"),
        ("created=$(date)", "created is a date"),
    ],
)
def test_fields_that_are_wrong(fields: str, says: str) -> None:
    with pytest.raises(StartError, match=says):
        parse(f"alice {ALICE} {fields}")


def test_fields_and_digests() -> None:
    digest = hashlib.sha256(ALICE.encode()).hexdigest()
    words = "role=predict,admin requests_s=10 in_flight=2 created=2026-11-30T21:00:00Z"
    (caller,) = parse(f"alice sha256:{digest} {words}")
    assert (caller, caller.plain) == (
        replace(parse(f"alice {ALICE} {words}")[0], plain=False),
        False,
    )
    assert caller.roles == {"predict", "admin"} and caller.limits == Limits(10.0, None, 2)
    assert line_of(caller) == f"alice sha256:{digest} {words}"
    assert parse(line_of(caller)) == (caller,)
    for wrong in (digest[:-2], digest + "00", "x" * 64):
        with pytest.raises(StartError, match="digest on line 1 is not whole"):
            parse(f"alice sha256:{wrong}")
    with pytest.raises(StartError, match="have the same key"):
        parse(f"a {ALICE}\nb sha256:{digest}")
    with pytest.raises(StartError, match="is the admin key"):
        parse(f"a sha256:{digest}", admin_key=ALICE)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff\xfe\x00", "cannot be read: it is not UTF-8 text"),
        (b"# nobody yet\n", "has no key: write a line NAME KEY"),
        (b"alice short\n", "the key on line 1 has 5 characters"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StartError, match=f"FCN_API_KEYS_FILE '{path}'.*{says}") as caught:
        Keys(path, admin_key=None, rejected=lambda reason: None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("authorization", "api_key", "wanted"),
    [
        (None, None, []),
        ("Bearer abc", None, ["abc"]),
        ("bEARER   abc ", None, ["abc"]),
        ("Basic abc", "def", ["def"]),
        ("abc", None, []),
        ("Bearer", None, [""]),
        (None, " abc ", ["abc"]),
        ("Bearer abc", "def", ["abc", "def"]),
    ],
)
def test_where_keys_are_sent(
    authorization: str | None, api_key: str | None, wanted: list[str]
) -> None:
    assert offered(authorization, api_key) == wanted


def test_who_is_let_in(tmp_path: Path) -> None:
    found, told = keys(tmp_path / "keys")
    assert found.admit([ALICE]).name == "alice"
    assert found.admit(["wrong", BOB]).name == "bob"
    assert not told
    for wrong in ([], [""], ["wrong"], [ALICE[:-1]], [ALICE + "x"], [ALICE.upper()], ["\udc80"]):
        with pytest.raises(NotAuthenticated, match="Bearer KEY, or X-API-Key: KEY"):
            found.admit(wrong)
    assert told == ["unauthenticated"] * 7


def test_roles(tmp_path: Path) -> None:
    operator = "the operator's own key"
    text = f"alice {ALICE}\nbob {BOB} role=admin\ncarol {CAROL} role=predict,admin\n"
    found, _ = keys(tmp_path / "keys", text, operator)
    for role, may in (("predict", {ALICE, CAROL}), ("admin", {BOB, CAROL, operator})):
        for key in (ALICE, BOB, CAROL, operator):
            if key in may:
                found.admit([key], role=role)
            else:
                with pytest.raises(NotAuthenticated, match="the (API|admin) key is missing"):
                    found.admit([key], role=role)
    assert found.admit([BOB, ALICE]).name == "alice", "either of two headers"
    nobody, _ = keys(tmp_path / "keys", f"alice {ALICE}\n")
    with pytest.raises(NotAllowed, match="has no admin key.*role admin"):
        nobody.admit([ALICE], role="admin")


def test_a_stream_ends_for_a_caller_who_lost_its_role(tmp_path: Path) -> None:
    found, _ = keys(tmp_path / "keys")
    alice = found.admit([ALICE])
    write(tmp_path / "keys", f"alice {ALICE} requests_s=5\n")
    look_twice(found)
    found.check(alice)
    write(tmp_path / "keys", f"alice {ALICE} role=admin\n")
    look_twice(found)
    with pytest.raises(NotAuthenticated, match="no longer valid"):
        found.check(alice)


def test_who_guesses_is_slowed_and_nobody_with_a_long_key_beside_it(tmp_path: Path) -> None:
    path, now = tmp_path / "keys", [0.0]
    counted, told = list[int](), list[str]()
    long = "k" * 32
    path.write_text(f"alice {ALICE}\nbob {long}\n")
    found = Keys(
        path,
        admin_key=None,
        rejected=told.append,
        wrong=lambda: counted.append(1),
        clock=lambda: now[0],
    )

    def ask(*tried: str, address: str = "192.0.2.1") -> str:
        try:
            return found.admit(tried, address=address).name
        except (NotAuthenticated, LimitExceeded) as error:
            return type(error).__name__

    for _ in range(50):
        assert ask() == ask("") == "NotAuthenticated", "no key is no guess"
    for n in range(FREE_GUESSES + 1):
        assert ask(f"wrong-{n}") == "NotAuthenticated"
    assert ask("wrong") == ask(ALICE) == "LimitExceeded", "the right one is not told, either"
    assert ask("x" * 32) == "LimitExceeded"
    assert ask(long) == "bob"
    assert ask(ALICE, address="192.0.2.2") == "alice"
    assert ask() == "NotAuthenticated"
    assert len(counted) == FREE_GUESSES + 2
    assert told.count("guesses") == 3
    now[0] += 2.1
    assert ask(ALICE) == "alice"


def test_a_file_that_everybody_may_read_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    digest = hashlib.sha256(ALICE.encode()).hexdigest()
    for text, mode, tells in (
        (f"alice {ALICE}\n", 0o644, True),
        (f"alice {ALICE}\n", 0o640, False),
        (f"alice sha256:{digest}\n", 0o644, False),
    ):
        caplog.clear()
        path.write_text(text)
        path.chmod(mode)
        Keys(path, admin_key=None, rejected=lambda reason: None)
        assert ("chmod o-rwx" in caplog.text) is tells


def test_every_key_is_compared_in_constant_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = keys(tmp_path / "keys", f"a {ALICE}\nb {BOB}\nc {CAROL}\n")
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(module, "hmac", type("", (), {"compare_digest": staticmethod(compare)}))
    found.admit([ALICE])
    assert not lets_in(found, "x")
    assert compared == [(32, 32)] * 6


def test_the_file_is_read_again_when_it_has_changed_and_stays_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    found, _ = keys(path)
    alice, bob = found.admit([ALICE]), found.admit([BOB])
    write(path, f"alice {ALICE}\ncarol {CAROL}\n")
    found.look()
    assert lets_in(found, BOB), "it may still be being written"
    with caplog.at_level(logging.INFO, "fcn.keys"):
        found.look()
    assert [lets_in(found, key) for key in (ALICE, BOB, CAROL)] == [True, False, True]
    assert "now of alice, carol; gone are 1, new are 1" in caplog.text
    found.check(alice)
    with pytest.raises(NotAuthenticated, match="no longer valid"):
        found.check(bob)
    caplog.clear()
    look_twice(found)
    assert not caplog.text, "nothing has changed"


def test_a_change_that_keeps_size_and_time_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    found, _ = keys(path, f"alice {ALICE}\n")
    status = path.stat()
    write(path, f"alice {ALICE[::-1]}\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    look_twice(found)
    assert not lets_in(found, ALICE)


def broken(path: Path, how: str) -> None:
    if how == "half":
        write(path, TEXT[: TEXT.index(BOB) + 5])
    elif how == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    else:
        path.unlink()
        if how == "directory":
            path.mkdir()
        elif how == "loop":
            path.symlink_to(path)


@pytest.mark.parametrize("how", ["half", "binary", "deleted", "directory", "loop"])
def test_a_file_that_is_broken_keeps_the_keys_and_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    path, stale = tmp_path / "keys", list[bool]()
    path.write_text(TEXT)
    path.chmod(0o600)
    found = Keys(path, admin_key=None, rejected=lambda reason: None, stale=stale.append)
    broken(path, how)
    for _ in range(4):
        found.look()
    assert lets_in(found, ALICE) and lets_in(found, BOB)
    (line,) = caplog.records
    assert "the API keys stay as they are" in line.message and line.levelno == logging.ERROR
    assert set(stale) == {True}
    path.rmdir() if how == "directory" else path.unlink(missing_ok=True)
    write(path, f"bob {BOB}\n")
    look_twice(found)
    assert [lets_in(found, key) for key in (ALICE, BOB)] == [False, True]
    assert stale[-1] is False


def test_a_file_without_a_key_lets_nobody_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    found, _ = keys(path)
    write(path, "")
    look_twice(found)
    assert not lets_in(found, ALICE)
    (line,) = caplog.records
    assert "nobody is let in" in line.message and line.levelno == logging.WARNING


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_a_file_that_could_not_be_read_for_a_while_is_read_once_it_can(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    path = tmp_path / "keys"
    found, _ = keys(path)

    def fails(*args: object, **kwargs: object) -> str:
        raise error

    write(path, f"bob {BOB}\n")
    with monkeypatch.context() as lacking:
        lacking.setattr(Path, "read_text", fails)
        for _ in range(4):
            found.look()
    assert lets_in(found, ALICE)
    assert len(caplog.records) == 1
    found.look()
    assert not lets_in(found, ALICE), "the key was taken out of the file"


async def test_it_is_watched_and_a_fault_does_not_end_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    found, _ = keys(path)
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    failing = True
    stamp = file_stamp

    def sometimes(path: Path) -> Any:
        if failing:
            raise ValueError("a fault of ours")
        return stamp(path)

    monkeypatch.setattr(module, "file_stamp", sometimes)
    watching = asyncio.create_task(found.watch())
    await soon(lambda: "looking at the API keys failed" in caplog.text)
    failing = False
    write(path, f"carol {CAROL}\n")
    await soon(lambda: lets_in(found, CAROL))
    watching.cancel()
