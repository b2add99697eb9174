"""The file of API keys: read again while the server runs; a wrong one stops the start."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fcn_client.stubs import segmentation_pb2 as pb
from service.api.stubs import inference_pb2_grpc as oip_grpc
from tests.contract.oip import Request
from tests.drawing import png, street
from tests.serving import fail_to_start, running
from tests.tiny_models import write_model
from tests.waiting import until

ALICE, BOB = "alice-has-this-key", "bob+has/another=1"
GOOD = png(street())


def test_a_key_is_revoked_and_another_comes_while_the_server_runs(tmp_path: Path) -> None:
    path, carol = tmp_path / "keys", "carol.came~later"
    path.write_text(f"alice {ALICE}\nbob {BOB}\n")
    write_model(tmp_path / "models")
    with running(tmp_path / "models", api_keys_file=path) as server:

        def status(key: str) -> int:
            return server.rest.get("/v1/models", headers={"X-API-Key": key}).status_code

        def write(text: str) -> None:
            path.with_name("new").write_text(text)
            path.with_name("new").replace(path)

        def until_logged(words: str) -> None:
            until(lambda: words in server.log(), server.log)

        go, options = threading.Event(), {"metadata": (("x-api-key", BOB),), "timeout": 60}
        item = pb.SegmentStreamRequest(id="1", request=pb.SegmentRequest(image=GOOD))
        stream = server.stub.SegmentStream(sent_again(item, go), **options)
        assert next(stream).HasField("response")
        stub = oip_grpc.GRPCInferenceServiceStub(server.channel)
        infer = stub.ModelStreamInfer(sent_again(Request().message(), go), **options)
        assert next(infer).infer_response.outputs

        write(f"alice {ALICE}\nbob short\n")
        until_logged("the API keys stay as they are")
        assert [status(key) for key in (ALICE, BOB, carol)] == [200, 200, 401]
        write(f"alice {ALICE}\ncarol {carol}\n")
        until_logged("gone are 1, new are 1")
        assert [status(key) for key in (ALICE, BOB, carol)] == [200, 401, 200]
        # What has begun with a key ends with it.
        go.set()
        assert next(stream).error.type == "urn:fcn:problem:not-authenticated"
        assert "no longer valid" in next(infer).error_message


def sent_again(message: Any, go: threading.Event) -> Iterator[Any]:
    """Once, and once more at `go`."""
    yield message
    go.wait(60)
    yield message


def test_a_wrong_file_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    write_model(tmp_path / "models")
    path.write_text("# x\nalice a-rather-long-secret\nbob tooshort\n")
    code, out, err = fail_to_start(model_repository=tmp_path / "models", api_keys_file=path)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith(
        f"fcn serve: FCN_API_KEYS_FILE '{path}': the key on line 3"
    )
    assert "secret" not in err and "tooshort" not in err
