"""The OpenAPI page: its examples are true, and the server answers as it says."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from pycocotools import mask

from service.api.http.examples import CLASSES_EXAMPLES
from service.api.status import TABLE, TYPE_PREFIX
from tests.contract.conftest import ADMIN_KEY
from tests.contract.test_behind_a_proxy import GETS
from tests.drawing import png, street
from tests.serving import Server, environment

GOOD = png(street())
LARGE = png(np.zeros((1000, 1000, 3), np.uint8))
"""Takes longer than a millisecond."""
NOT_SEEN = {
    *("cancelled", "model-load-error", "internal-error"),
    *("not-authenticated", "not-allowed"),
    *("message-too-large", "unknown-method"),
}
"""Nobody is left to read it, not at a request, a fault of ours; what administrators meet; and what
gRPC alone has."""


@pytest.fixture(scope="module")
def page(server: Server) -> dict[str, Any]:
    page: dict[str, Any] = server.rest.get("/openapi.json").json()
    return page


def operations(page: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Finds each by its method and path, such as `get /livez`."""
    return {
        f"{method} {path}": operation
        for path, item in page["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    }


def contents(page: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(operation, status, what an answer of some media type is)."""
    return [
        (name, status, content)
        for name, operation in operations(page).items()
        for status, response in operation["responses"].items()
        for content in response["content"].values()
    ]


def check(page: dict[str, Any], schema: dict[str, Any], value: object) -> None:
    """Raises an error unless the value is as the schema of the page says."""
    jsonschema_rs.validate({**schema, "components": page["components"]}, value)


def test_every_answer_has_a_schema_and_its_examples_keep_it(page: dict[str, Any]) -> None:
    shown = 0
    for operation, status, content in contents(page):
        examples = [e["value"] for e in content.get("examples", {}).values()]
        examples += [content["example"]] if "example" in content else []
        binary = content["schema"].get("format") == "binary"
        assert examples or binary or status == "default", (operation, status)
        for example in examples:
            check(page, content["schema"], example)
            shown += 1
    assert shown > 20


def test_every_error_has_an_example(page: dict[str, Any]) -> None:
    found = {
        (int(status), name)
        for operation, status, content in contents(page)
        if operation == "post /segment" and status not in ("200", "default")
        for name in content["examples"]
    }
    assert found == {(row.http, row.kind) for row in TABLE.values() if row.kind not in NOT_SEEN}


@pytest.mark.parametrize(
    ("query", "body", "kind"),
    [
        ("", b"", "invalid-image"),
        ("?alpha=2", GOOD, "invalid-parameter"),
        ("?model=nope", GOOD, "unknown-model"),
        ("?version=99", GOOD, "unknown-version"),
        ("", b"text" * 9, "unsupported-image-format"),
        ("?deadline_ms=1", LARGE, "deadline-exceeded"),
    ],
)
def test_real_errors_are_those_of_the_examples(
    server: Server, page: dict[str, Any], query: str, body: bytes, kind: str
) -> None:
    reply = server.rest.post(f"/segment{query}", content=body)
    content = page["paths"]["/segment"]["post"]["responses"][str(reply.status_code)]["content"]
    answer = content["application/problem+json"]
    example = answer["examples"][kind]["value"]
    check(page, answer["schema"], reply.json())
    assert reply.json().keys() == example.keys()
    for key in ("type", "title", "status"):
        assert reply.json()[key] == example[key]
    assert example["type"] == TYPE_PREFIX + kind


def test_operations_have_a_tag_a_name_and_a_summary(page: dict[str, Any]) -> None:
    tags = {tag["name"] for tag in page["tags"]}
    found = operations(page).values()
    assert {tag for operation in found for tag in operation["tags"]} == tags
    assert all(len(operation["tags"]) == 1 for operation in found)
    names = [operation["operationId"] for operation in found]
    assert len(set(names)) == len(names)
    assert all(operation["summary"] for operation in found)


def test_every_route_is_described(page: dict[str, Any]) -> None:
    asked = [*GETS, "/v2/models/tiny/versions/1", "/v2/models/tiny/versions/1/config"]
    patterns = [re.sub(r"{\w+}", "[^/]+", path) for path in page["paths"]]
    undescribed = ("/", "/docs", "/status", "/openapi.json")
    for path in asked:
        if path not in undescribed and not path.startswith("/web/"):
            assert any(re.fullmatch(pattern, path) for pattern in patterns), path


def references(part: object) -> Iterator[str]:
    """Names of the schemas that are referred to, anywhere in it."""
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"].removeprefix("#/components/schemas/")
        for inner in part.values():
            yield from references(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from references(inner)


def test_schemas_are_shared(page: dict[str, Any]) -> None:
    assert set(references(page)) == set(page["components"]["schemas"])
    for name, _, content in contents(page):
        schema = content["schema"]
        inline = schema.get("properties")
        assert not inline, f"{name} describes an object of its own: name it in the components"


def test_texts_are_for_callers(page: dict[str, Any]) -> None:
    """A caller knows neither settings nor modules."""
    text = json.dumps(page)
    for word in ("FCN_", "service/", "middleware", "segmenter"):
        assert word not in text, word


@pytest.mark.parametrize("output", ["json", "rle", "polygons"])
def test_answers_are_as_described(server: Server, page: dict[str, Any], output: str) -> None:
    reply = server.rest.post(f"/segment?output={output}", content=GOOD)
    answers = page["paths"]["/segment"]["post"]["responses"]["200"]["content"]
    schema = answers[reply.headers["content-type"]]["schema"]
    check(page, schema, reply.json())
    described = page["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    assert reply.json().keys() <= described["properties"].keys()


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/{model}", "/livez", "/readyz", "/v2", "/v2/models/stats"]
    + [
        f"/v2/models/{{name}}{version}{end}"
        for version in ("", "/versions/{version}")
        for end in ("", "/ready", "/config", "/stats")
    ],
)  # fmt: skip
def test_documents_are_as_described(server: Server, page: dict[str, Any], path: str) -> None:
    address = path.replace("{version}", "1").replace("{name}", "tiny").replace("{model}", "tiny")
    reply = server.rest.get(address)
    schema = page["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    check(page, schema, reply.json())


def test_inference_is_as_described(server: Server, page: dict[str, Any]) -> None:
    operation = page["paths"]["/v2/models/{name}/infer"]["post"]
    body = operation["requestBody"]["content"]["application/json"]
    files = {**body["example"]["inputs"][0], "data": [base64.b64encode(GOOD).decode()]}
    request = {**body["example"], "inputs": [files]}
    check(page, body["schema"], request)
    reply = server.rest.post("/v2/models/tiny/infer", json=request)
    assert reply.status_code == 200, reply.text
    answer = operation["responses"]["200"]["content"]["application/json"]
    check(page, answer["schema"], reply.json())


def test_the_repository_is_as_described(oip_server: Server, page: dict[str, Any]) -> None:
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    reply = oip_server.rest.post("/v2/repository/index", json={"ready": True}, headers=headers)
    operation = page["paths"]["/v2/repository/index"]["post"]
    answer = operation["responses"]["200"]["content"]["application/json"]
    check(page, answer["schema"], reply.json())
    refused = oip_server.rest.post("/v2/repository/models/tiny/load")
    assert (refused.status_code, list(refused.json())) == (401, ["error"])
    assert operation["security"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_masks_of_the_example_are_masks() -> None:
    rows = CLASSES_EXAMPLES["rle"]["value"]["classes"]
    masks = {row["name"]: mask.decode(row["segmentation"]) for row in rows}
    np.testing.assert_array_equal(masks["road"], [[0, 0, 0, 0], [0, 1, 1, 0]])
    np.testing.assert_array_equal(masks["sky"], 1 - masks["road"])


def schemathesis(server: Server, folder: Path, examples: int, more: str = "") -> int:
    """Make requests from the page, right ones and wrong ones, and check the answers.

    The same ones each time. A long run found nothing more: leave --max-examples out.
    Returns how many operations were tested.
    """
    config = folder / "schemathesis.toml"
    config.write_text(Path(__file__).with_name("schemathesis.toml").read_text() + more)
    words = ["--no-color", f"--config-file={config}", "run", f"{server.url}/openapi.json"]
    done = subprocess.run(
        [
            Path(sys.executable).with_name("st"),
            *words,
            f"--max-examples={examples}",
            "--generation-deterministic",
        ],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tested = re.search(r"Tested: (\d+)", done.stdout)
    return int(tested[1]) if tested else 0


def test_schemathesis(server: Server, tmp_path: Path) -> None:
    page = server.rest.get("/openapi.json").json()
    assert schemathesis(server, tmp_path, 5) == len(operations(page))
