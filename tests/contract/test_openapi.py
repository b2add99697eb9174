"""The OpenAPI page: its examples are true, and the server answers as it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from pycocotools import mask

from service.api.http.examples import CLASSES_EXAMPLES
from service.api.status import TABLE, TYPE_PREFIX
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


def contents(page: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(operation, status, what an answer of some media type is)."""
    return [
        (f"{method} {path}", status, content)
        for path, operations in page["paths"].items()
        for method, operation in operations.items()
        for status, response in operation["responses"].items()
        for content in response["content"].values()
    ]


def test_every_answer_has_a_schema_and_its_examples_keep_it(page: dict[str, Any]) -> None:
    shown = 0
    for operation, status, content in contents(page):
        examples = [e["value"] for e in content.get("examples", {}).values()]
        examples += [content["example"]] if "example" in content else []
        binary = content["schema"].get("format") == "binary"
        assert examples or binary or status == "default", (operation, status)
        for example in examples:
            jsonschema_rs.validate(content["schema"], example)
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
    jsonschema_rs.validate(answer["schema"], reply.json())
    assert reply.json().keys() == example.keys()
    for key in ("type", "title", "status"):
        assert reply.json()[key] == example[key]
    assert example["type"] == TYPE_PREFIX + kind


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
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tested = re.search(r"Tested: (\d+)", done.stdout)
    return int(tested[1]) if tested else 0


def test_schemathesis(server: Server, tmp_path: Path) -> None:
    paths = server.rest.get("/openapi.json").json()["paths"]
    assert schemathesis(server, tmp_path, 5) == len(paths)
