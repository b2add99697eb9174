"""`fcn bench` with real servers: what it sends, counts, draws and refuses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cli._load import Answer, kind_of, open_loop, summary
from cli._load_plot import SIZE, ticks, write_plot
from cli.main import main
from fcn_client.errors import DecodeError, FcnConnectionError, Overloaded, ServerError
from fcn_client.types import Timings
from tests.drawing import jpeg, street
from tests.serving import Server, running, write_slow_model
from tests.tiny_models import write_model

# Fewer than a server takes in at once, so that none is refused, however busy the machine is.
SHORT = ["--rate", "20", "--duration", "1s", "--warm", "200ms", "--patience", "30s"]
NOTHING = Timings()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository: Path = tmp_path_factory.mktemp("models")
    write_model(repository)
    with running(repository) as server:
        yield server


def bench(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["bench", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_every_request_is_counted(
    server: Server, transport: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.url if transport == "rest" else f"grpc://{server.target}"
    for n in range(3):
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(street(30, 40, seed=n)))
    plot = tmp_path / "plot.png"
    series = "fcn_requests_total"
    labels = f'code="{"200" if transport == "rest" else "OK"}",method="Segment",model="tiny"'
    sent = f'{series}{{{labels},transport="{transport}"}}'
    before = server.metric(sent)
    found = bench(
        capsys, url, *SHORT, "--target", "20s", "--images", str(tmp_path), "--plot", str(plot)
    )
    assert found["images"] == 3 and found["errors"] == {}
    assert found["sent"] == found["answered"] == found["within_target"] > 10
    assert found["share_within_target"] == 1.0
    assert found["goodput_per_s"] == found["offered_per_s"] == found["sent"]
    latency = list(found["latency_ms"].values())
    assert latency[0] > 0 and latency == sorted(latency)
    assert all(stage["p50"] >= 0 for stage in found["server_ms"].values())
    assert found["server_ms"]["infer"]["p50"] > 0
    # Those of the warm-up, and the one before, are not counted here, but by the server.
    assert server.metric(sent) > before + found["sent"]
    with Image.open(plot) as image:
        assert (image.format, image.size) == ("PNG", SIZE)


def test_it_draws_what_it_sends_and_reports_in_lines(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [server.url, *SHORT, "--target", "20s", "--size", "64x48", "--min-share", "1"]
    assert main(["bench", *words]) == 0
    text = capsys.readouterr().out
    for part in ("sent:", "100.00% of all within 20000 ms", "p99.9 ", "infer ", "errors:   none"):
        assert part in text


def test_what_is_refused_is_an_error_by_its_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One request at a time, each of which takes 0.1 s and more."""
    write_slow_model(tmp_path, turns_at_least=150_000)
    with running(tmp_path, max_inflight=1) as server:
        words = ["bench", server.url, *SHORT, "--size", "16x16", "--target", "20s"]
        assert main([*words, "--min-share", "1", "--json"]) == 1
        said = capsys.readouterr()
    found = json.loads(said.out)
    assert set(found["errors"]) == {"overloaded"}
    assert found["answered"] + found["errors"]["overloaded"] == found["sent"]
    assert found["share_within_target"] < 1
    assert "within the target, less than --min-share 1" in said.err


def test_a_server_that_cannot_be_asked_is_said_before_the_load(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, says in (
        (["http://127.0.0.1:9"], "127.0.0.1:9"),
        (["ftp://x"], "use http://host:8000 or grpc://host:8001"),
        ([server.url, "--model", "none"], "none"),
        ([server.url, "--images", str(tmp_path)], "holds no image"),
        ([server.url, "--plot", str(tmp_path / "no" / "plot.png")], "there is no folder"),
    ):
        assert main(["bench", *words, "--rate", "1", "--duration", "1s"]) == 1
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1


def test_a_server_that_wants_a_key_is_shown_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "models")
    (tmp_path / "keys").write_text("alice alice-has-this-key\n")
    (tmp_path / "key").write_text("alice-has-this-key\n")
    with running(tmp_path / "models", api_keys_file=tmp_path / "keys") as server:
        words = [server.url, *SHORT, "--size", "16x16", "--deadline", "30s"]
        assert main(["bench", *words]) == 1
        assert "Not authenticated: " in capsys.readouterr().err
        found = bench(capsys, *words, "--api-key-file", str(tmp_path / "key"))
    assert found["errors"] == {} and found["answered"] > 10


def test_an_image_that_cannot_be_sent_is_named(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").touch()
    words = ["bench", server.url, "--rate", "1", "--images", str(tmp_path)]
    assert main(words) == 1
    assert "a.png: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--rate", "0", "want a number above 0"),
        ("--rate", "inf", "want a number above 0"),
        ("--rate", "x", "want a number above 0"),
        ("--target", "175", "want a time with its unit"),
        ("--duration", "0s", "want a time with its unit"),
        ("--size", "8x8", "want WIDTHxHEIGHT"),
        ("--min-share", "2", "want 0 to 1"),
        ("--min-share", "half", "want 0 to 1"),
    ],
)
def test_what_is_no_number_is_refused(
    flag: str, value: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "http://x", "--rate", "1", flag, value])
    assert exit_.value.code == 2
    assert says in capsys.readouterr().err


def test_a_stall_is_charged_to_everybody_who_came_meanwhile() -> None:
    turn = asyncio.Lock()

    async def ask(number: int) -> Timings:
        async with turn:
            await asyncio.sleep(0.6 if number == 0 else 0)
        return NOTHING

    answers = asyncio.run(open_loop(ask, [0.0, 0.1, 0.4], patience_s=30))
    assert [answer.due_s for answer in answers] == [0.0, 0.1, 0.4]
    for answer, least in zip(answers, (0.6, 0.5, 0.2), strict=True):
        assert answer.latency_s > least - 0.01 and not answer.error


def test_a_sender_that_is_late_is_charged_too() -> None:
    async def ask(number: int) -> Timings:
        return NOTHING

    (answer,) = asyncio.run(open_loop(ask, [-0.2], patience_s=30))
    assert answer.latency_s > 0.2
    found = summary([answer], since_s=-1, until_s=0, target_s=0.1)
    assert found["lag_p99_ms"] >= 200 and found["share_within_target"] == 0


def test_a_client_hangs_up_and_the_others_go_on() -> None:
    left: list[int] = []

    async def ask(number: int) -> Timings:
        if number == 0:
            try:
                await asyncio.Event().wait()
            finally:
                left.append(number)
        if number == 1:
            raise Overloaded()
        return NOTHING

    counted: list[None] = []
    answers = asyncio.run(
        open_loop(ask, [0.0, 0.01, 0.02], patience_s=3.0, answered=lambda: counted.append(None))
    )
    assert [answer.error for answer in answers] == ["timeout", "overloaded", ""]
    assert left == [0] and len(counted) == 3


def test_the_summary_counts_what_was_due_in_its_time() -> None:
    answers = [Answer(due, due, due + latency) for due, latency in
               ((0.5, 9.0), (1.0, 0.1), (1.5, 0.2), (2.0, 0.3), (3.0, 9.0))]  # fmt: skip
    answers.append(Answer(2.5, 2.5, 2.6, "timeout"))
    found = summary(answers, since_s=1.0, until_s=3.0, target_s=0.25)
    assert (found["sent"], found["answered"], found["within_target"]) == (4, 3, 2)
    assert found["share_within_target"] == 0.5
    assert (found["offered_per_s"], found["goodput_per_s"]) == (2.0, 1.0)
    assert found["latency_ms"]["p50"] == 200.0 and found["latency_ms"]["max"] == 300.0
    assert found["errors"] == {"timeout": 1}
    none = summary([], since_s=0.0, until_s=1.0, target_s=1.0)
    assert none["share_within_target"] is None and none["latency_ms"]["p99"] is None


def test_errors_have_a_name() -> None:
    assert kind_of(Overloaded()) == "overloaded"
    assert kind_of(ServerError(status=502)) == "status 502"
    assert kind_of(ServerError(code="UNKNOWN")) == "unknown"
    assert kind_of(FcnConnectionError()) == "no connection"
    assert kind_of(DecodeError()) == "unreadable answer"


@pytest.mark.parametrize("most", [0.3, 1.0, 7.0, 30.0, 218.75, 6000.0])
def test_ticks_are_few_and_round(most: float) -> None:
    found = list(ticks(most))
    assert 4 < len(found) < 11 and found[0] == 0 and found[-1] <= most * (1 + 1e-9)


def test_the_plot_shows_each_kind_of_answer(tmp_path: Path) -> None:
    colors = {"within": (0, 114, 178), "later": (230, 159, 0), "failed": (204, 51, 17)}
    kinds = {
        "within": [Answer(t / 10, t / 10, t / 10 + 0.1) for t in range(30)],
        "later": [Answer(1.0, 1.0, 1.2), Answer(2.0, 2.0, 9.0)],
        "failed": [Answer(1.5, 1.5, 1.6, "timeout")],
    }

    def shown(answers: list[Answer]) -> dict[str, int]:
        path = tmp_path / "plot.png"
        write_plot(path, answers, 0.175, "title")
        with Image.open(path) as image:
            pixels = np.asarray(image, int)[80:]  # below the legend
        near = {name: abs(pixels - color) < 50 for name, color in colors.items()}
        return {name: int(found.all(-1).sum()) for name, found in near.items()}

    assert shown([]) == dict.fromkeys(colors, 0)
    for name, answers in kinds.items():
        assert shown(answers)[name] > 0
