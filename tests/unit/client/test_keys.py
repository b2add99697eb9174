"""API keys: sent over both transports, refused clearly, never asked about twice or shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.main import main
from fcn_client import FcnClient, InvalidInput, NotAuthenticated
from tests.drawing import png, street
from tests.unit.client.clients import EITHER, Client
from tests.unit.client.fakes import SERVERS, Script

BOTH = pytest.mark.parametrize("transport", SERVERS)
KEY = "s3cret-0_key"


@BOTH
@EITHER
def test_the_key_is_sent_with_every_request(transport: str, client_of: Client) -> None:
    script = Script(key=KEY)
    with (
        SERVERS[transport](script) as url,
        client_of(url, api_key=KEY, headers={"X-Team": "roads"}) as client,
    ):
        assert client.segment(b"a").attempts == 1
        assert [model.name for model in client.models()] == ["fake"]
        if transport == "grpc":
            assert next(iter(client.segment_stream([b"a"]))).ok
        assert KEY not in repr(client)
    assert all(request["path"] != "barred" for request in script.asked)
    assert [sent["x-team"] for sent in script.headers] == ["roads"] * (2 + (transport == "grpc"))


@BOTH
@EITHER
@pytest.mark.parametrize("key", [None, "another"])
def test_without_it_nothing_is_asked_twice(
    transport: str, client_of: Client, key: str | None
) -> None:
    script = Script(key=KEY)
    with SERVERS[transport](script) as url, client_of(url, api_key=key) as client:
        with pytest.raises(NotAuthenticated, match="^Not authenticated: do this$") as raised:
            client.segment(b"a")
        with pytest.raises(NotAuthenticated):
            client.models()
    assert (raised.value.status, raised.value.attempts) == (401, 1)
    assert not raised.value.retryable
    assert len(script.asked) == 2


@pytest.mark.parametrize("key", ["", "two words", "Zeile\n", "schlüssel", "Byte\x00"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(InvalidInput, match="without spaces and line ends") as raised:
        FcnClient("http://localhost:8000", api_key=key)
    assert not key or key.strip("\n\x00") not in str(raised.value)


@BOTH
def test_predict_takes_the_key_from_a_file(
    transport: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(png(street(2, 3)))
    (tmp_path / "key").write_text(f"{KEY}\n")
    words = ["predict", str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]
    words += ["--write", "label_map"]
    with SERVERS[transport](Script(key=KEY)) as url:
        assert main([*words, "--url", url]) == 1
        assert "fcn: Not authenticated: do this" in capsys.readouterr().err
        assert main([*words, "--url", url, "--api-key-file", str(tmp_path / "key")]) == 0
    assert (tmp_path / "out" / "label_maps" / "a.png").is_file()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--url", "http://127.0.0.1:9", "--api-key-file", "none"], "cannot be read: No such file"),
        (["--url", "http://127.0.0.1:9", "--api-key-file", "bytes"], "cannot be read: it is no"),
        (["--url", "http://127.0.0.1:9", "--api-key-file", "words"], "without spaces"),
        (["--api-key-file", "words"], "give its --url, too"),
    ],
)
def test_a_key_file_that_is_none(
    more: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(png(street(2, 3)))
    Path("bytes").write_bytes(b"\xff\xfe")
    Path("words").write_text("no key at all")
    assert main(["predict", "a.png", "--out", "out", *more]) == 1
    assert message in capsys.readouterr().err
