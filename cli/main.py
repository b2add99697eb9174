"""`fcn COMMAND ...`: finds the command, runs it, and turns what went wrong into an exit code.

A file cli/<name>.py is the command <name> (`_` becomes `-`). It has `HELP`, one line;
`configure(parser)`, which adds its arguments; and `run(args)`, which returns the exit code and
imports inside itself what it needs, so that `fcn --help` needs neither torch nor ONNX Runtime.

Exit codes: 0 done, 1 refused or failed (one line on stderr says why), 2 wrong usage,
130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import io
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import cli

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

_NOT_COMMANDS = frozenset({"main"})
# What installs a module that a command wants and this environment lacks.
_EXTRA_OF = {
    "fcn_client": "client",
    "fsspec": "ray",
    "httpx": "client",
    "onnx": "train",
    "onnxruntime": "cpu",  # or gpu
    "onnx_ir": "train",
    "onnxscript": "train",
    "pyarrow": "ray",
    "ray": "ray",
    "scipy": "train",
    "tensorboard": "train",
    "torch": "train",
    "tqdm": "train",
    "yaml": "train",
}
_OUR_PACKAGES = frozenset({"cli", "fcn_client", "model", "service", "training"})


class _Parser(argparse.ArgumentParser):
    """Refuses words that it does not know itself, with the usage of its own command.

    Left alone, argparse has the parser above do that, with a usage in which they are not.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


class Command(Protocol):
    """Says what every command's module offers."""

    HELP: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def command_names() -> tuple[str, ...]:
    """Lists every command in alphabetical order."""
    modules = (found.name for found in pkgutil.iter_modules(cli.__path__))
    return tuple(
        name.replace("_", "-")
        for name in sorted(modules)
        if name not in _NOT_COMMANDS and not name.startswith("_")
    )


def build_parser(names: Sequence[str]) -> argparse.ArgumentParser:
    """Makes a parser that knows these commands; their modules are imported for it."""
    parser = _Parser(
        prog="fcn",
        description="Train fully convolutional networks for semantic segmentation and serve them.",
    )
    parser.add_argument("--version", action="version", version=f"fcn {_version()}")
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error arose, for a bug report"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in names:
        command = load_command(name)
        subparser = commands.add_parser(name, help=command.HELP, description=command.HELP)
        command.configure(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("fcn-serve")
    except importlib.metadata.PackageNotFoundError:  # run from its folder, not installed
        return "(not installed)"


def load_command(name: str) -> Command:
    """Imports the module of the command `name`."""
    return cast(Command, importlib.import_module(f"cli.{name.replace('-', '_')}"))


def _open_closed_streams() -> None:
    """Gives a process that was started without one a stdout and stderr that go nowhere: else the
    next file or socket would have that number, and be written to."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code of the process."""
    # ONNX Runtime 1.29 and newer reports model and machine facts to its makers unless this is set
    # before it is imported. A self-hosted service calls nobody; ORT_DISABLE_TELEMETRY=0 undoes it.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # gRPC's core writes to stderr past the log, and would wait there for a reader who stopped.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may be no text of this encoding
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    names = command_names()
    # One command's module is enough to run it; help and mistakes want them all.
    chosen = [word for word in words if not word.startswith("-")][:1]
    parser = build_parser(chosen if chosen and chosen[0] in names else names)
    args = parser.parse_args(words)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        code = run(args)
        sys.stdout.flush()  # here, where a reader who left can still be answered quietly
        return code
    except KeyboardInterrupt:
        print("fcn: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # `fcn models --json | head` is no error; the interpreter must not flush stdout again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        if args.traceback or not is_expected(error):
            raise
        print(f"fcn: {one_line(error)}", file=sys.stderr)
        return EXIT_FAILED


def is_expected(error: BaseException) -> bool:
    """Says whether the message alone tells the user what to do: our own errors and the system's.

    A ValueError of another library is a bug until one of our modules has put it in our words.
    """
    if isinstance(error, OSError) or _missing_extra(error):
        return True
    return type(error).__module__.partition(".")[0] in _OUR_PACKAGES


def one_line(error: BaseException) -> str:
    """Gives the message without line breaks; the error's name where it says nothing."""
    if extra := _missing_extra(error):
        return f"{error}: pip install 'fcn-serve[{extra}]' brings it"
    return " ".join(str(error).split()) or type(error).__name__


def _missing_extra(error: BaseException) -> str | None:
    """Names the extra that brings the module whose absence is the error, if that is the error."""
    if not isinstance(error, ModuleNotFoundError):
        return None
    return _EXTRA_OF.get((error.name or "").partition(".")[0])


if __name__ == "__main__":
    sys.exit(main())
