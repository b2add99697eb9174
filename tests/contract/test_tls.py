"""TLS on both ports of a real server: who trusts whom, new certificates, and what is no TLS."""

from __future__ import annotations

import runpy
import socket
import ssl
from pathlib import Path
from queue import SimpleQueue

import grpc
import httpx
import pytest

from fcn_client.stubs import segmentation_pb2 as pb
from fcn_client.stubs import segmentation_pb2_grpc as stubs
from tests.authority import Authority
from tests.drawing import png, street
from tests.serving import ROOT, Server, fail_to_start, running
from tests.waiting import until

IMAGE = png(street())
Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other"))


def rest(server: Server, trusted: Authority, client: Pair | None = None) -> httpx.Client:
    return httpx.Client(base_url=server.url, verify=trusted.context(client), timeout=60)


def segment(server: Server, trusted: Authority, client: Pair | None = None) -> int:
    """Bytes of an answer over gRPC."""
    key, cert = (client[1].read_bytes(), client[0].read_bytes()) if client else (None, None)
    credentials = grpc.ssl_channel_credentials(trusted.ca.read_bytes(), key, cert)
    with grpc.secure_channel(server.target, credentials) as channel:
        request = pb.SegmentRequest(image=IMAGE)
        return len(stubs.SegmentationStub(channel).Segment(request, timeout=60).SerializeToString())


def of_server(address: tuple[str, int], trusted: Authority) -> bytes:
    """The certificate that a port shows."""
    with (
        socket.create_connection(address) as link,
        trusted.context().wrap_socket(link, server_hostname="localhost") as secure,
    ):
        shown = secure.getpeercert(binary_form=True)
    assert shown
    return shown


def half_an_upload(address: tuple[str, int], trusted: Authority) -> bytes:
    """Waits for the answer to a body of which the rest does not come."""
    with (
        socket.create_connection(address, timeout=60) as link,
        trusted.context().wrap_socket(link, server_hostname="localhost") as secure,
    ):
        secure.sendall(b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
        return secure.recv(65536)


def test_a_client_with_a_certificate_is_served_over_both(
    mutual: Server, authority: Authority
) -> None:
    assert mutual.url.startswith("https://")
    client = authority.issue("client", "somebody")
    with rest(mutual, authority, client) as asked:
        answer = asked.post("/segment", content=IMAGE)
        assert answer.status_code == 200
        assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert asked.get("/nothing").headers["Strict-Transport-Security"]
    assert segment(mutual, authority, client)


def test_one_without_gets_the_probes_alone(mutual: Server, authority: Authority) -> None:
    with rest(mutual, authority) as asked:
        for path in ("/livez", "/readyz"):
            assert asked.get(path).status_code == 200
        for path in ("/", "/metrics", "/v1/models", "/v2/health/ready", "/readyz/", "//readyz"):
            assert asked.get(path).status_code == 403
        answer = asked.post("/segment", content=bytes(500_000))
        assert (answer.status_code, answer.json()["title"]) == (403, "Not allowed")
        assert "client certificate" in answer.json()["detail"]
        assert asked.get("/livez").status_code == 200
    with pytest.raises(grpc.RpcError) as caught:
        segment(mutual, authority)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_one_of_another_authority_gets_nothing(
    mutual: Server, authority: Authority, other: Authority
) -> None:
    stranger = other.issue("client", "somebody")
    with (
        rest(mutual, authority, stranger) as asked,
        pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)),
    ):
        asked.get("/livez")
    with pytest.raises(grpc.RpcError):
        segment(mutual, authority, stranger)


def test_a_client_that_does_not_trust_the_server_says_so(mutual: Server, other: Authority) -> None:
    with rest(mutual, other) as asked, pytest.raises(httpx.ConnectError, match="VERIFY_FAILED"):
        asked.get("/livez")
    with pytest.raises(grpc.RpcError) as caught:
        segment(mutual, other)
    assert "CERTIFICATE_VERIFY_FAILED" in str(caught.value.details())


def test_plain_http_is_told_to_use_https(mutual: Server) -> None:
    answer = httpx.get(mutual.url.replace("https://", "http://") + "/livez")
    assert (answer.status_code, "ask for https://" in answer.text) == (400, True)
    with grpc.insecure_channel(mutual.target) as channel, pytest.raises(grpc.RpcError):
        stubs.SegmentationStub(channel).ListModels(pb.ListModelsRequest(), timeout=60)


def test_the_health_check_of_the_container_needs_no_certificate(
    mutual: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FCN_TLS_CERT", "/run/tls/tls.crt")
    monkeypatch.setenv("FCN_HTTP_PORT", mutual.url.rpartition(":")[2])
    main = runpy.run_path(str(ROOT / "docker" / "healthcheck.py"))["main"]
    assert (main(), capsys.readouterr().out.count("ready")) == (0, 1)


def test_a_new_certificate_is_taken_and_open_connections_stay(
    one_model: Path, authority: Authority, tmp_path: Path
) -> None:
    mine = Authority(tmp_path)
    cert, key = mine.issue()
    with running(one_model, tls_cert=cert, tls_key=key) as server, rest(server, mine) as asked:
        ports = [int(place.rpartition(":")[2]) for place in (server.url, server.target)]
        addresses = [("127.0.0.1", port) for port in ports]

        def shown() -> set[bytes]:
            return {of_server(address, mine) for address in addresses}

        first = shown()
        assert len(first) == 1
        metrics = asked.get("/metrics").text
        assert "fcn_tls_certificate_stale 0.0" in metrics
        assert "fcn_tls_certificate_expiry_timestamp_seconds 3.25" in metrics

        good = key.read_bytes()
        key.write_text("broken")
        until(lambda: "fcn_tls_certificate_stale 1.0" in asked.get("/metrics").text, server.log)
        assert "stays as it is: FCN_TLS_KEY" in server.log()
        assert shown() == first
        key.write_bytes(good)
        until(lambda: "fcn_tls_certificate_stale 0.0" in asked.get("/metrics").text, server.log)

        mine.issue()
        until(lambda: server.log().count("read again") >= 2, server.log)
        second = shown()
        assert len(second) == 1
        assert second != first
        # All of it went over the one connection that was opened first.
        assert "\nfcn_connections 1.0\n" in asked.get("/metrics").text


def test_the_connection_that_was_there_goes_on_over_grpc(one_model: Path, tmp_path: Path) -> None:
    mine = Authority(tmp_path)
    cert, key = mine.issue()
    with running(one_model, tls_cert=cert, tls_key=key) as server:
        credentials = grpc.ssl_channel_credentials(mine.ca.read_bytes())
        with grpc.secure_channel(server.target, credentials) as channel:
            stub = stubs.SegmentationStub(channel)
            request = pb.SegmentRequest(image=IMAGE)
            stub.Segment(request, timeout=60)
            mine.issue()
            until(lambda: "read again" in server.log(), server.log)
            stub.Segment(request, timeout=60)


def test_what_records_add_to_messages_is_no_slow_upload(one_model: Path, tmp_path: Path) -> None:
    """A stream waits for its next image while others send over the same connection: what frames
    and records add to their messages must not look like a message of the stream's own."""
    mine = Authority(tmp_path)
    cert, key = mine.issue()
    with running(one_model, tls_cert=cert, tls_key=key, upload_timeout_s=1) as server:
        credentials = grpc.ssl_channel_credentials(mine.ca.read_bytes())
        with grpc.secure_channel(server.target, credentials) as channel:
            stub = stubs.SegmentationStub(channel)
            sent: SimpleQueue[pb.SegmentStreamRequest | None] = SimpleQueue()
            answers = stub.SegmentStream(iter(sent.get, None), timeout=60)
            item = pb.SegmentStreamRequest(id="1", request=pb.SegmentRequest(image=IMAGE))
            sent.put(item)
            assert next(answers).HasField("response")
            for _ in range(20):
                with pytest.raises(grpc.RpcError) as caught:
                    stub.Segment(pb.SegmentRequest(image=bytes(8_000_000)), timeout=60)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            for _ in range(2):  # two uploads, one after the other, take all of their time
                assert b" 408 " in half_an_upload(server.http_address, mine)
            sent.put(item)
            assert next(answers).HasField("response")
            sent.put(None)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"tls_cert": "a"}, "FCN_TLS_CERT and FCN_TLS_KEY belong together"),
        ({"tls_key": "a"}, "FCN_TLS_CERT and FCN_TLS_KEY belong together"),
        ({"tls_client_ca": "a"}, "FCN_TLS_CLIENT_CA needs a server with TLS"),
        ({"tls_cert": "/no", "tls_key": "/no"}, "FCN_TLS_CERT '/no' cannot be read"),
    ],
)
def test_a_wrong_setting_is_one_line_at_the_start(flags: dict[str, str], words: str) -> None:
    code, out, err = fail_to_start(**flags)
    assert (code != 0, out) == (True, "")
    assert words in err
    assert "Traceback" not in err


def test_without_tls_an_offer_of_it_is_refused(one_model: Path, authority: Authority) -> None:
    with running(one_model) as server:
        assert "strict-transport-security" not in server.rest.get("/livez").headers
        with pytest.raises((ssl.SSLError, ConnectionError)):
            of_server(server.http_address, authority)
