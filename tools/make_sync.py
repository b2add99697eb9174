"""Writes fcn_client/sync/, the client for threads, from fcn_client/aio/: `make sync`.

Whoever changes the client changes fcn_client/aio/ and runs this; a test compares. What threads and
asyncio do differently is in fcn_client/threads.py and tasks.py, under the same names.
Source of the idea: httpcore's scripts/unasync.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
AIO: Final = ROOT / "fcn_client" / "aio"
SYNC: Final = ROOT / "fcn_client" / "sync"

# Sentences that are true of one of them.
TEXTS: Final = {
    "from the tasks of an event loop": "from threads",
    "Holds the client for asyncio, from which `make sync` makes `fcn_client/sync/`.": (
        "Holds the client for threads, made by `make sync` from `fcn_client/aio/`."
    ),
    """Asks the server behind one address, or the fit one of several, for the tasks of the event
    loop in which it is made.

    Files are read, and images encoded and decoded, on threads: the loop is never blocked. A
    cancelled call is cancelled on the server, too. `async with AsyncFcnClient(url) as client:` or
    `aclose()` gives the connections back.
""": """Asks the server behind one address. Threads may share it, and with it its connections.

    `with FcnClient(url) as client:` or `close()` gives the connections back.
""",
    "is read in this event loop, at": "is read on a thread of its own, at",
}
CODE: Final = (
    (r"AsyncGenerator\[(.+), None\]", r"Generator[\1, None, None]"),
    (r"Awaitable\[(\w+)\]", r"\1"),
    (r"fcn_client\.aio\b", "fcn_client.sync"),
    (r"fcn_client\.tasks\b", "fcn_client.threads"),
    (r"\bfrom grpc import aio\n", ""),
    (r"\baio\.", "grpc."),
    (r"\basync_", ""),
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\.close\(None\)", ".close()"),
    (r"\bStopAsyncIteration\b", "StopIteration"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\b__a(enter|exit)__", r"__\1__"),
    (r"\ba(iter|next|close|closing)\b", r"\1"),
)


def made() -> dict[Path, str]:
    """Returns the text of every file of fcn_client/sync/. Raises: CalledProcessError from ruff."""
    texts = {path: path.read_text() for path in sorted(AIO.glob("*.py"))}
    for sentence in TEXTS:
        if not any(sentence in text for text in texts.values()):
            raise ValueError(f"fcn_client/aio/ no longer says what TEXTS replaces: {sentence!r}")
    return {SYNC / path.name: _format(_without_async(path, text)) for path, text in texts.items()}


def _without_async(path: Path, text: str) -> str:
    for sentence, other in TEXTS.items():
        text = text.replace(sentence, other)
    for pattern, other in CODE:
        text = re.sub(pattern, other, text)
    return f"# Made from {path.relative_to(ROOT)} by `make sync`: change that.\n{text}"


def _format(text: str) -> str:
    """Drops imports that are no longer used, and lays the code out anew."""
    ruff = [sys.executable, "-m", "ruff"]
    name = ["--stdin-filename", str(SYNC / "made.py")]
    for command in (["check", "--fix", "--quiet", "--select", "F401,I"], ["format", "--quiet"]):
        command = [*ruff, *command, *name, "-"]
        done = subprocess.run(command, cwd=ROOT, input=text, text=True, stdout=subprocess.PIPE)
        done.check_returncode()
        text = done.stdout
    return text


def main() -> None:
    files = made()
    SYNC.mkdir(exist_ok=True)
    for path in set(SYNC.glob("*.py")) - set(files):
        path.unlink()
    for path, text in files.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
