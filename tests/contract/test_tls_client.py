"""The client, `fcn predict` and `fcn evaluate` ask servers with TLS, and say what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from cli.main import main
from fcn_client import AsyncFcnClient, FcnClient, FcnConnectionError, InvalidInput, NotAllowed
from fcn_client.errors import FcnError, ServerError
from fcn_client.trust import TlsFiles
from tests.authority import Authority
from tests.drawing import png, street
from tests.serving import Server, running

IMAGE = png(street())


@pytest.fixture(scope="module")
def mine(authority: Authority) -> TlsFiles:
    cert, key = authority.issue("client", "somebody")
    return {"ca_file": authority.ca, "cert_file": cert, "key_file": str(key)}


@pytest.fixture(scope="module")
def plain(one_model: Path) -> Iterator[Server]:
    with running(one_model) as server:
        yield server


def address(server: Server, scheme: str) -> str:
    target = server.target if scheme.startswith("grpc") else server.url.partition("://")[2]
    return f"{scheme}://{target}"


EITHER = pytest.mark.parametrize("scheme", ["https", "grpcs"])


@EITHER
async def test_certificates_of_files_are_trusted_and_shown(
    mutual: Server, mine: TlsFiles, scheme: str
) -> None:
    with FcnClient(address(mutual, scheme), **mine) as client:
        assert client.ready()
        assert client.segment(IMAGE).attempts == 1
    async with AsyncFcnClient(address(mutual, scheme), **mine) as asynchronous:
        assert (await asynchronous.segment(IMAGE)).attempts == 1


def test_a_certificate_is_for_the_name_whose_addresses_are_asked(
    one_model: Path, authority: Authority
) -> None:
    cert, key = authority.issue("named", "localhost")
    with running(one_model, tls_cert=cert, tls_key=key) as server:
        for scheme in ("https", "grpcs"):
            url = address(server, scheme)
            assert isinstance(asked(url, {"ca_file": authority.ca}), FcnConnectionError)
            url = url.replace("127.0.0.1", "localhost")
            with FcnClient(url, dns=True, ca_file=authority.ca) as client:
                assert client.ready()
                assert client.segment(IMAGE).attempts == 1


def asked(url: str, files: TlsFiles) -> FcnError:
    """Why an image was not answered."""
    with FcnClient(url, timeout_s=5, **files) as client, pytest.raises(FcnError) as caught:
        client.segment(IMAGE)
    return caught.value


@EITHER
def test_a_server_that_is_not_trusted_is_not_asked_again(
    mutual: Server, tmp_path: Path, scheme: str
) -> None:
    error = asked(address(mutual, scheme), {"ca_file": Authority(tmp_path).ca})
    assert isinstance(error, FcnConnectionError)
    assert (error.retryable, error.attempts) == (False, 1)
    assert "not trusted here: give the file of its authority as ca_file (--ca)" in str(error)


def test_a_client_without_a_certificate_is_told_that_one_is_wanted(
    mutual: Server, authority: Authority
) -> None:
    files: TlsFiles = {"ca_file": authority.ca}
    assert isinstance(asked(address(mutual, "https"), files), NotAllowed)
    error = asked(address(mutual, "grpcs"), files)
    assert "or a client certificate (cert_file, key_file)" in str(error)


def test_a_client_certificate_of_another_authority_is_told(
    mutual: Server, authority: Authority, tmp_path: Path
) -> None:
    cert, key = Authority(tmp_path).issue("client", "somebody")
    files: TlsFiles = {"ca_file": authority.ca, "cert_file": cert, "key_file": key}
    error = asked(address(mutual, "https"), files)
    assert isinstance(error, FcnConnectionError)
    assert ("does not take the client certificate" in str(error), error.attempts) == (True, 1)


@EITHER
def test_a_server_without_tls_is_told(plain: Server, authority: Authority, scheme: str) -> None:
    error = asked(address(plain, scheme), {"ca_file": authority.ca})
    assert ("does not speak TLS" in str(error), error.attempts) == (True, 1)


def test_a_client_without_tls_is_told(mutual: Server) -> None:
    error = asked(address(mutual, "http"), {})
    assert isinstance(error, ServerError)
    assert (error.status, "ask for https://" in str(error)) == (400, True)
    assert "want TLS (grpcs://)" in str(asked(address(mutual, "grpc"), {}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda files: files.update(ca_file="no.pem"), "ca_file no.pem cannot be read"),
        (lambda files: files.update(ca_file=files["key_file"]), "has no PEM certificate"),
        (lambda files: files.update(key_file=None), "cert_file and key_file belong together"),
        (lambda files: files.update(key_file=files["cert_file"]), "no PEM certificate with its"),
    ],
)
@EITHER
def test_files_are_looked_at_before_the_server_is_asked(
    mine: TlsFiles, change: Callable[[TlsFiles], None], words: str, scheme: str
) -> None:
    files = mine.copy()
    change(files)
    with pytest.raises(InvalidInput, match=words):
        FcnClient(f"{scheme}://127.0.0.1:1", **files)


def test_files_are_for_addresses_with_tls(mine: TlsFiles) -> None:
    with pytest.raises(InvalidInput, match="ca_file, cert_file, key_file: for https:// and grpcs"):
        FcnClient("http://127.0.0.1:1", **mine)


@EITHER
def test_predict_asks_with_certificates(
    mutual: Server,
    mine: TlsFiles,
    scheme: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "street.png").write_bytes(IMAGE)
    words = ["predict", str(tmp_path / "street.png"), "--out", str(tmp_path / "out")]
    flags = [f"--ca={mine['ca_file']}", f"--cert={mine['cert_file']}", f"--key={mine['key_file']}"]
    assert main([*words, "--url", address(mutual, scheme), *flags]) == 0
    with Image.open(next((tmp_path / "out" / "label_maps").iterdir())) as written:
        assert written.size == street().shape[1::-1]
    capsys.readouterr()
    assert main([*words, *flags]) == 1
    assert "--ca is for a server: give its --url, too" in capsys.readouterr().err


@EITHER
def test_evaluate_asks_with_certificates(mutual: Server, mine: TlsFiles, scheme: str) -> None:
    from training.evaluation.evaluate import EvaluationError
    from training.evaluation.targets import open_target

    target = open_target(address(mutual, scheme), tls=mine)
    assert target.class_names[""]
    target.close()
    with pytest.raises(EvaluationError, match="--ca, --cert and --key are for servers"):
        open_target("network.onnx", tls=mine)
