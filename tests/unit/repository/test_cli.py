"""The frame of the `fcn` command, tried with a command that each test writes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import cli
from cli.main import build_parser, command_names, load_command, main

ROOT = Path(__file__).resolve().parents[3]
AddCommand = Callable[[str], None]


@pytest.fixture
def add_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AddCommand]:
    """Makes `fcn demo-command`, whose run() has the given body."""
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])

    def add(body: str) -> None:
        (tmp_path / "demo_command.py").write_text(
            "HELP = 'Try the frame.'\n"
            "def configure(parser):\n"
            "    parser.add_argument('--count', type=int, default=0)\n"
            "def run(args):\n" + textwrap.indent(textwrap.dedent(body), "    ")
        )

    yield add
    sys.modules.pop("cli.demo_command", None)


def test_files_are_the_commands() -> None:
    files = {path.stem for path in (ROOT / "cli").glob("[!_]*.py")} - {"main"}
    assert set(command_names()) == {name.replace("_", "-") for name in files}
    assert "serve" in command_names()


@pytest.mark.parametrize("name", command_names())
def test_each_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "\n" not in load_command(name).HELP
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    assert exit_.value.code == 0
    assert f"usage: fcn {name}" in capsys.readouterr().out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    page = capsys.readouterr().out
    # The help of a long name is on the line below it.
    assert [name for name in command_names() if not re.search(rf"^    {name}\s", page, re.M)] == []


def test_help_imports_nothing_heavy() -> None:
    """`fcn --help` answers at once, and in an environment that has only one of the extras."""
    script = (
        "import sys; from cli.main import build_parser, command_names\n"
        "build_parser(command_names())\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'fastapi', 'grpc'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"fcn {version('fcn-serve')}\n"


def test_a_checkout_runs_without_being_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == "fcn (not installed)\n"


@pytest.mark.parametrize("words", [[], ["no-such-command"], ["--no-such-flag"]])
def test_wrong_usage_exits_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2
    assert "usage: fcn" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        (["predict", "a.png", "--out", "b", "--no-such-flag"], "usage: fcn predict "),
        (["predict", "a.png", "--out", "b", "more"], "usage: fcn predict "),
        (["data", "check", "camvid", "a", "--no-such-flag"], "usage: fcn data check "),
        (["--no-such-flag", "models"], "usage: fcn "),
    ],
)
def test_the_usage_is_that_of_the_command_that_is_wrong(
    words: list[str], usage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(usage) and "unrecognized arguments: " in err


def test_run_decides_the_exit_code(add_command: AddCommand) -> None:
    add_command("return args.count + 3")
    assert main(["demo-command", "--count", "4"]) == 7


def test_only_the_chosen_command_is_imported(add_command: AddCommand) -> None:
    add_command("return 0")
    build_parser(["demo-command"])
    assert "cli.demo_command" in sys.modules
    sys.modules.pop("cli.demo_command")
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    assert "cli.demo_command" not in sys.modules


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (
            "from model.contract import ContractError\nraise ContractError('no contract:\\n  add')",
            "fcn: no contract: add\n",
        ),
        (
            "from service.errors import ModelLoadError\nraise ModelLoadError('no such folder')",
            "fcn: no such folder\n",
        ),
        ("open('/nonexistent/file')", "No such file or directory: '/nonexistent/file'\n"),
        ("from service.errors import Overloaded\nraise Overloaded(3)", "retry in 3 s\n"),
        ("from service.errors import UnknownModel\nraise UnknownModel", "fcn: UnknownModel\n"),
        (
            "raise ModuleNotFoundError(\"No module named 'torch.nn'\", name='torch.nn')",
            "fcn: No module named 'torch.nn': pip install 'fcn-serve[train]' brings it\n",
        ),
    ],
)
def test_expected_errors_are_one_line(
    body: str, line: str, add_command: AddCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    add_command(body)
    assert main(["demo-command"]) == 1
    err = capsys.readouterr().err
    assert err.endswith(line)
    assert err.count("\n") == 1


@pytest.mark.parametrize("body", ["raise ValueError('a bug')", "import no_such_module_at_all"])
def test_a_bug_keeps_its_traceback(body: str, add_command: AddCommand) -> None:
    add_command(body)
    with pytest.raises((ValueError, ModuleNotFoundError)):
        main(["demo-command"])


def test_traceback_on_request(add_command: AddCommand) -> None:
    add_command("open('/nonexistent/file')")
    with pytest.raises(FileNotFoundError):
        main(["--traceback", "demo-command"])


def test_interrupt_exits_130(add_command: AddCommand, capsys: pytest.CaptureFixture[str]) -> None:
    add_command("raise KeyboardInterrupt")
    assert main(["demo-command"]) == 130
    assert capsys.readouterr().err == "fcn: interrupted\n"


def test_onnx_runtime_reports_to_nobody(tmp_path: Path) -> None:
    """Left alone it writes a device identifier below the home folder and uploads events."""
    (tmp_path / "demo_command.py").write_text(
        "HELP = ''\n"
        "def configure(parser): pass\n"
        "def run(args):\n"
        "    import onnxruntime\n"
        "    onnxruntime.SessionOptions()\n"
        "    return 0\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    script = (
        f"import sys, cli; cli.__path__.append({str(tmp_path)!r})\n"
        "from cli.main import main; sys.exit(main(['demo-command']))"
    )
    # A CI variable would silence it as well, and so hide a regression here.
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, check=True)
    assert list(home.rglob("*")) == []


def test_a_name_that_is_not_utf8_can_be_printed(tmp_path: Path) -> None:
    (tmp_path / "demo_command.py").write_text(
        "HELP = ''\n"
        "def configure(parser): pass\n"
        "def run(args):\n"
        "    print('caf\\udce9.png')\n"
        "    return 0\n"
    )
    script = (
        f"import sys, cli; cli.__path__.append({str(tmp_path)!r})\n"
        "from cli.main import main; sys.exit(main(['demo-command']))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"caf\\udce9.png\n")


def test_a_reader_who_left_is_no_error(tmp_path: Path) -> None:
    """One leaves in `fcn models --json | head`: no traceback from run() nor at the very end."""
    (tmp_path / "demo_command.py").write_text(
        "HELP = ''\n"
        "def configure(parser): pass\n"
        "def run(args):\n"
        "    for _ in range(100_000): print('x' * 80)\n"
        "    return 0\n"
    )
    script = (
        f"import sys, cli; cli.__path__.append({str(tmp_path)!r})\n"
        "from cli.main import main; sys.exit(main(['demo-command']))"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert writer.stdout and writer.stderr
    with writer:
        writer.stdout.readline()
        writer.stdout.close()
        assert writer.stderr.read() == b""
    assert writer.returncode == 1
