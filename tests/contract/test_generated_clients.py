"""Clients that other people's programs make of the OpenAPI page work for every output.

The commands and the programs are those of docs/tutorials/web-app.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.core.outputs.registry import all_outputs
from tests.conftest import need
from tests.contract.oip import clients_python
from tests.drawing import jpeg, png, read_png, street
from tests.serving import ROOT, Server, environment
from tests.tutorials import addresses, commands, page, saved_files
from tests.unit.repository.pages import blocks

ACCEPTANCE = ROOT / "tests" / "acceptance"
IMAGE = street(30, 50)
SAID = {
    "problem": "404 urn:fcn:problem:unknown-model",
    "classes": "red,green,blue",
    "inputs": "image",
    "infer": "label_map",
}


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(no_proxy="*", **env),
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def described(server: Server, folder: Path) -> Path:
    path = folder / "openapi.json"
    path.write_text(server.rest.get("/openapi.json").text)
    (folder / "image.png").write_bytes(png(IMAGE))
    (folder / "photo.jpg").write_bytes(jpeg(IMAGE))
    (folder / "answers").mkdir()
    return path


def check(server: Server, folder: Path, printed: str) -> None:
    """Compares what the client got with what a plain request gets."""
    lines = dict(line.split(" ", 1) for line in printed.splitlines())
    for name, output in all_outputs().items():
        assert lines[name] == output.media_type
        plain = server.rest.post(
            "/segment",
            params={"model": "tiny", "version": "1", "output": name},
            content=png(IMAGE),
            headers={"Content-Type": "image/png"},
        ).content
        answer = (folder / "answers" / name).read_bytes()
        if name == "json":  # it tells how long it took
            told = [json.loads(text) for text in (plain, answer)]
            assert [document.pop("timings_ms").keys() for document in told]
            assert told[0] == told[1]
        else:
            assert answer == plain, name
    for name, words in SAID.items():
        assert re.sub(r"[\[\]' ]", "", lines[name]) == re.sub(" ", "", words)
    assert {"tiny", "other"} <= set(re.findall(r"\w+", lines["models"]))


@pytest.fixture
def generated(server: Server, tmp_path: Path) -> Path:
    """A folder with the client that openapi-python-client makes."""
    need(
        clients_python().with_name("openapi-python-client").exists(),
        "openapi-python-client: run `make clients`",
    )
    file = described(server, tmp_path)
    for name, text in saved_files("web-app").items():
        (tmp_path / name).write_text(text)
    (command,) = (
        line.split()
        for block in blocks(page("web-app"))
        for line in block.text.splitlines()
        if line.startswith("openapi-python-client ")
    )
    where = command.index("--url")
    command[where : where + 2] = ["--path", str(file)]
    program = clients_python().with_name(command[0])
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    told = run(program, *command[1:], cwd=tmp_path, PATH=path)
    assert "WARNING" not in told and "Error" not in told, told
    return tmp_path


def test_python(server: Server, generated: Path) -> None:
    program = ACCEPTANCE / "generated_client.py"
    files = (generated / "image.png", generated / "answers")
    printed = run(
        clients_python(), program, server.url, *files, cwd=generated, PYTHONPATH=str(generated)
    )
    check(server, generated, printed)


def test_the_tutorials_python(server: Server, generated: Path) -> None:
    """Its first program uses our client, the second the generated one."""
    ours, theirs = commands("web-app", "python")
    for block, python in ((ours, Path(sys.executable)), (theirs, clients_python())):
        text = block.text
        for words, other in addresses(server).items():
            text = text.replace(words, other)
        place = str(ROOT if block is ours else generated)
        printed = run(python, "-c", text, cwd=generated, PYTHONPATH=place)
    assert re.search(r"\('(red|green|blue)', [01]\.\d+\)", printed)
    assert read_png((generated / "overlay.png").read_bytes()).shape == IMAGE.shape


def test_typescript(server: Server, tmp_path: Path) -> None:
    """The tutorial's functions and a program with every output, compiled strictly, and run."""
    need(shutil.which("node") is not None, "node (on Debian and Ubuntu, apt-get install npm)")
    modules = clients_python().parents[1] / "node_modules"
    need(modules.exists(), "the packages of tests/acceptance/typescript: run `make clients`")
    file = described(server, tmp_path)
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    run(modules / ".bin" / "openapi-typescript", file, "--output", "fcn.d.ts", cwd=tmp_path)
    (snippet,) = commands("web-app", "typescript")
    (tmp_path / "tutorial.ts").write_text(snippet.text.replace("http://localhost:8000", server.url))
    shutil.copy(ACCEPTANCE / "typescript" / "main.ts", tmp_path)
    (tmp_path / "use.ts").write_text(
        """
        import { readFileSync, writeFileSync } from "node:fs";
        import { overlay, report } from "./tutorial.js";
        const photo = new Blob([readFileSync("photo.jpg")]);
        const told = await report(photo, ["green"]);
        console.log(told.classes.map((found) => found.name).join(","));
        writeFileSync("overlay.png", Buffer.from(await (await overlay(photo)).arrayBuffer()));
        """
    )
    options = ("--strict", "--target", "es2022", "--module", "nodenext")
    more = ("--types", "node", "--skipLibCheck", "--outDir", ".", "main.ts", "use.ts")
    run(modules / ".bin" / "tsc", *options, *more, cwd=tmp_path)
    used = run("node", "use.js", cwd=tmp_path)
    assert used == "green\n"
    assert read_png((tmp_path / "overlay.png").read_bytes()).shape == IMAGE.shape
    printed = run("node", "main.js", server.url, "image.png", "answers", cwd=tmp_path)
    check(server, tmp_path, printed)
