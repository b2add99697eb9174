"""`fcn predict` by a server that is slow, or breaks off, over some of the images."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from cli.main import main
from fcn_client import FcnClient, FcnConnectionError, FcnError, RetryPolicy
from fcn_client.predict import RemoteLabeller
from service.errors import DeadlineExceeded
from tests.drawing import png, street
from tests.unit.client.fakes import Refusal, Script, grpc_server, http_server, refusal

LATE = refusal(DeadlineExceeded)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.png").write_bytes(png(street(2, 3)))
    return folder


@pytest.fixture
def run(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, Any]]]:
    def run(url: str, *words: str) -> tuple[int, dict[str, Any]]:
        out = str(images.parent / "out")
        words = ("--out", out, "--url", url, "--in-flight", "1", "--json", *words)
        code = main(["predict", str(images), *words])
        return code, json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize("server", [http_server, grpc_server], ids=["rest", "grpc"])
def test_an_image_too_late_once_is_asked_for_again(
    server: type, run: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    script = Script([None, LATE, None])
    with server(script) as url:
        code, report = run(url)
    assert (code, report["done"], len(script.asked)) == (0, 3, 4)


@pytest.mark.parametrize("server", [http_server, grpc_server], ids=["rest", "grpc"])
def test_an_image_too_late_twice_fails_alone(
    server: type, images: Path, run: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    script = Script([None, LATE, LATE, None])
    with server(script) as url:
        code, report = run(url)
        assert (code, report["done"], len(script.asked)) == (1, 2, 4)
        ((failure),) = report["failed"]
        assert failure["source"] == "b.png"
        assert "(asked 2 times; see --deadline)" in failure["error"]
        with (images.parent / "out" / "shares.csv").open() as file:
            assert [row["source"] for row in csv.DictReader(file)] == ["a.png", "c.png"]
        code, report = run(url)  # what is missing
    assert (code, report["done"], report["skipped"]) == (0, 1, 2)


@pytest.mark.parametrize(("words", "deadline_ms"), [((), 120_000), (("--deadline", "7"), 7_000)])
def test_the_server_is_told_the_deadline(
    words: tuple[str, ...], deadline_ms: int, run: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    """Else the server's own would end an image that somebody waits longer for."""
    script = Script()
    with http_server(script) as url:
        assert run(url, *words)[0] == 0
    for asked in script.asked:
        (sent,) = parse_qs(urlsplit(asked["path"]).query)["deadline_ms"]
        assert deadline_ms - 5_000 < int(sent) <= deadline_ms


@pytest.mark.parametrize("value", ["0", "-1", "3601", "soon", "nan"])
def test_a_deadline_that_cannot_be(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict", ".", "--out", "out", "--url", "http://x", "--deadline", value])
    assert f"{value}: want seconds, up to 3600" in capsys.readouterr().err


def test_a_deadline_is_for_a_server(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(images), "--out", str(images.parent / "out"), "--deadline", "3"]
    assert main(["predict", *words]) == 1
    assert "--deadline is for a server: give its --url, too" in capsys.readouterr().err


class Breaking(FcnClient):
    """Loses the connection over each image; `gone`: over everything else, too."""

    gone = False

    def segment(self, *args: Any, **options: Any) -> Any:
        raise FcnConnectionError("the server closed the connection")

    def models(self) -> Any:
        if self.gone:
            raise FcnConnectionError("refused")
        return super().models()


def test_a_connection_lost_over_one_image_is_that_images() -> None:
    with http_server(Script()) as url:
        client = Breaking(url, retry=RetryPolicy(max_attempts=1))
        labeller = RemoteLabeller(client)
        with pytest.raises(FcnError, match="for this image alone") as caught:
            labeller(b"image")
        assert not isinstance(caught.value, FcnConnectionError)
        client.gone = True
        with pytest.raises(FcnConnectionError):
            labeller(b"image")
        labeller.close()


@pytest.mark.parametrize("server", [http_server, grpc_server], ids=["rest", "grpc"])
def test_a_proxy_without_its_server_is_asked_again(
    server: type, run: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    script = Script([Refusal("", None), None])
    with server(script) as url:
        assert run(url)[1]["done"] == 3
    assert len(script.asked) == 4
