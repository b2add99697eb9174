"""The comparison with other servers runs: the bare limit, ours, and plain FastAPI as the peer."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import servers
from bench.images import jpeg
from bench.peers import __main__ as peers
from bench.peers import contenders, network, report, slots
from bench.peers.contenders import CONTENDERS, OURS, Contender, Variant
from bench.peers.report import Slot
from bench.servers import CannotRun
from model.contract import METADATA_KEY
from tests import serving
from tests.tiny_models import expected_label_map, write_model

FASTAPI = CONTENDERS["fastapi"]


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    write_model(tmp_path / "models")
    (tmp_path / "image.jpg").write_bytes(jpeg((60, 80)))
    return {
        "model": str(next(tmp_path.glob("models/*/*/model.onnx"))),
        "image": str(tmp_path / "image.jpg"),
        "seconds": 0.2,
        "open_seconds": 0.5,
        "warm": 0.1,
        "round": 0,
    }


@pytest.mark.timeout(300)  # a dozen processes, one after the other
def test_whole_run_with_one_peer(task: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    begin, end = (mark.format(file="model.onnx") for mark in (report.BEGIN, report.END))
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    words = ["--model", task["model"], "--peers", "fastapi", "--rounds", "1", "--only", "overload"]
    words += ["--seconds", "0.2", "--open-seconds", "0.5", "--warm", "0.1"]
    words += ["--work", str(tmp_path / "run.json"), "--out", str(tmp_path / "peers.json")]
    done = subprocess.run(
        [sys.executable, "-m", "bench.peers", *words, "--page", str(page)],
        cwd=serving.ROOT,
        env=serving.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "peers.json").read_text())
    assert {"date", "revision", "machine", "versions"} <= set(result)
    assert result["limit"]["images_per_s"] == max(
        way["images_per_s"] for way in result["limit"]["ways"]
    )
    assert [row["name"] for row in result["servers"]] == ["fcn", "fastapi"]
    for row in result["servers"]:
        assert "error" not in row
        for factor in ("2.0", "3.0"):
            load = row["open"][factor]
            assert load["answered"] + load["refused"] + load["expired"] + load["hung_up"] > 0
            assert load["goodput_per_s"] <= load["answered_per_s"] <= load["offered_per_s"]
            assert load["other_errors"] == 0
            assert 0 < load["generator_share"] < 1
            assert load["of_limit"] == pytest.approx(
                load["goodput_per_s"] / load["limit_each_round"][0], abs=1e-3
            )
    assert result["servers"][1]["variant"] in result["servers"][1]["variants"]
    text = page.read_text()
    assert text.startswith(f"before\n{begin}\n")
    assert text.endswith(f"{end}\nafter\n")
    assert "plain FastAPI" in text and "old" not in text
    percent = 100 * result["servers"][0]["open"]["3.0"]["generator_share"]
    # The run has only the overload, and its result no share at 0.7x.
    assert re.search(rf"\| - / [\d.]+ % / {percent:.1f} % \|", text)
    assert "</svg>" in (tmp_path / report.PLOT.format(precision="fp32")).read_text()
    assert not (tmp_path / "run.json").exists(), "nothing is left to go on with"


def test_steady_slot_of_our_server(task: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # With a network that takes no time the limit is far above what a server can do.
    monkeypatch.setattr(slots, "capacity", lambda task: 40.0)
    found = slots.run(task | {"name": OURS.name, "part": "steady"})
    assert found["labels_equal"] is True
    assert set(found["closed"]) == set(slots.CONNECTIONS)
    for load in found["closed"].values():
        assert load["answered_per_s"] > 0
        assert (load["refused"], load["hung_up"], load["other_errors"]) == (0, 0, 0)
    calm = found["open"][slots.STEADY_LOAD]
    assert calm["answered"] > 0
    assert calm["refused"] + calm["hung_up"] + calm["other_errors"] == 0
    assert calm["offered_per_s"] < 2 * 40 * slots.STEADY_LOAD
    assert found["limits_per_s"] == [40.0, 40.0]
    assert found["memory_mib"] > 20
    assert found["start_s"] > 0


def test_a_bounded_peer_refuses_and_leaves_no_process(task: dict[str, Any]) -> None:
    """Its answers are the label map, and a bound shows as refusals, not as answers."""
    image = Path(task["image"]).read_bytes()
    with contenders.running(FASTAPI, Variant(1, 1), Path(task["model"]), image, bound=2) as server:
        label_map = expected_label_map(network.decode(image))
        np.testing.assert_array_equal(slots.label_map(server.png), label_map)
        assert slots.closed_loop(server, task, 8, 0.5)["refused"] > 0
        inside = servers.processes(server.mark)
        assert server.memory_mib() > 20
    assert inside
    assert not [pid for pid in inside if Path(f"/proc/{pid}/smaps_rollup").exists()]


def test_peer_that_ends_at_once_is_reported_with_its_last_words(task: dict[str, Any]) -> None:
    broken = Contender("fastapi", "broken", "fastapi", module=("-c", "raise SystemExit('no luck')"),
                       own_venv=False)  # fmt: skip
    with (
        pytest.raises(CannotRun, match="does not start: exit code 1; its log ends: no luck"),
        contenders.running(broken, Variant(1, 1), Path(task["model"]), b""),
    ):
        pass


def test_peer_that_does_not_install_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "peers" / "absent").mkdir(parents=True)
    (tmp_path / "peers" / "absent" / "requirements.txt").write_text("./no-such-package\n")
    monkeypatch.setattr(contenders, "PEERS", tmp_path / "peers")
    monkeypatch.setattr(contenders, "CACHE", tmp_path / "cache")
    with pytest.raises(CannotRun, match="does not install: .*no-such-package"):
        contenders.install(Contender("absent", "Absent", "absent"))


def test_interrupted_run_goes_on_only_with_the_same_settings(tmp_path: Path) -> None:
    file = tmp_path / "new" / "run.json"
    assert peers.finished_slots(file, {"rounds": 1}) == {}
    finished: dict[Slot, Any] = {Slot(0, "limit", "limit"): {"ways": []}}
    peers.keep(file, {"rounds": 1}, finished)
    assert peers.finished_slots(file, {"rounds": 1}) == finished
    assert peers.finished_slots(file, {"rounds": 2}) == {}


def test_every_server_has_both_parts_in_every_round() -> None:
    names = ["fcn", "fastapi", "litserve"]
    plan = list(peers.slots_of(names, 2, None))
    assert plan[0] == Slot(0, "limit", "limit")
    for name in names:
        own = [(slot.round, slot.part) for slot in plan if slot.name == name]
        assert [each for each in own if each[1] != "variants"] == [
            (turn, part) for turn in (0, 1) for part in ("steady", "overload")
        ]
    first = [next(slot.name for slot in plan if (slot.round, slot.part) == (turn, "steady"))
             for turn in (0, 1)]  # fmt: skip
    assert first[0] != first[1]


def test_slot_without_a_result_says_why(task: dict[str, Any], tmp_path: Path) -> None:
    args = argparse.Namespace(model=tmp_path / "none.onnx", seconds=0.1, open_seconds=0.1, warm=0.1)
    found = peers.run(Slot(0, "limit", "limit"), args, Path(task["image"]), {})
    assert re.match(
        r"(?s)has no result: exit code 1: .*the bare limit does not run", found["error"]
    )


def test_unknown_peer_is_named() -> None:
    with pytest.raises(SystemExit, match="no peer nginx: choose from fastapi, litserve"):
        peers.chosen("fastapi,nginx")


def test_failed_peer_has_a_row() -> None:
    measured = {
        "limit": {"images_per_s": 30.0, "ways": []},
        "servers": [{"name": "ray_serve", "title": "Ray Serve", "error": "does not install: no",
                     "open": {}}],
    }  # fmt: skip
    assert "| Ray Serve | does not install: no |" in report.table(measured)


def test_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="needs the lines <!-- bench.peers m.onnx -->"):
        report.write_page(page, {"file": "m.onnx"})


def test_peers_know_the_contract_key() -> None:
    assert network.CONTRACT_KEY == METADATA_KEY


@pytest.mark.parametrize("peer", [c for c in contenders.PEER_LIST if c.own_venv],
                         ids=lambda peer: str(peer.name))  # fmt: skip
def test_peer_is_pinned(peer: Contender) -> None:
    lines = peer.requirements.read_text().splitlines()
    assert all("==" in line for line in lines)
    assert any(line.lower().startswith(f"{peer.package}==") for line in lines)
    ours = (serving.ROOT / "constraints.txt").read_text().splitlines()
    # The same runtime and codecs, or the comparison is one of those.
    for package in ("onnxruntime", "pillow"):
        assert {line for line in lines if line.startswith(f"{package}==")} <= set(ours)
        assert os.linesep.join(lines).count(f"{package}==") == 1
