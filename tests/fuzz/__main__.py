"""Fuzzes for minutes, led by what is reached in the code: `make fuzz MINUTES=10`.

Each target has a process of its own, whose corpus grows in build/fuzz/ from run to run. What fails
lies there, too, as `crash-*`; `python -m tests.fuzz --again FILE TARGET` reads it again.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from bench import record

CORPORA = Path("build") / "fuzz"
LONGEST_INPUT = 1 << 13
SLOWEST_S = 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help="names; all by default")
    parser.add_argument("--minutes", type=float, default=10, help="of all targets together")
    parser.add_argument("--seconds", type=int, help="fuzz the one target here, for so long")
    parser.add_argument("--again", type=Path, help="read a file again by the one target")
    parser.add_argument("--results", type=Path, help="where to write the counts as JSON")
    options = parser.parse_args()
    if options.again or options.seconds:
        return _one(options.targets[0], options.seconds, options.again)
    from tests.fuzz.targets import TARGETS

    names = options.targets or list(TARGETS)
    seconds = max(1, round(60 * options.minutes / len(names)))
    found = {name: _run(name, seconds) for name in names}
    if options.results:
        record.write(options.results, {"targets": found})
    return int(any(one["failed"] for one in found.values()))


def _folder(name: str) -> Path:
    return CORPORA / re.sub(r"\W+", "-", name)


def _run(name: str, seconds: int) -> dict[str, int | str]:
    """Runs one target in a process of its own, and prints a row."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--seconds", str(seconds), name],
        capture_output=True,
        text=True,
        errors="replace",
        env={key: value for key, value in os.environ.items() if not key.startswith("FCN_")},
    )
    runs = re.findall(r"^Done (\d+) runs", done.stderr, re.M) or re.findall(
        r"^#(\d+)\t", done.stderr, re.M
    )
    covered = re.findall(r" ft: (\d+)", done.stderr)
    result: dict[str, int | str] = {
        "inputs": int(runs[-1]) if runs else 0,
        "seconds": seconds,
        "features": int(covered[-1]) if covered else 0,
        "failed": done.returncode,
    }
    print(f"{name:16} {result['inputs']:>9} inputs, {result['features']:>6} features", end="")
    print(f", FAILED:\n{done.stderr[-3000:]}" if done.returncode else "", flush=True)
    return result


def _one(name: str, seconds: int | None, again: Path | None) -> int:
    warnings.simplefilter("ignore")
    logging.disable()
    if again is not None:
        from tests.fuzz.targets import TARGETS

        print(TARGETS[name].run(again.read_bytes()))
        return 0
    import atheris

    with atheris.instrument_imports(
        include=["service", "model", "training.datasets", "h11", "python_multipart", "dotenv"]
    ):
        from tests.fuzz.targets import TARGETS
    from tests.fuzz.target import mutated

    target = TARGETS[name]
    seeds = target.seeds()
    folder = _folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (folder / f"seed-{number}").write_bytes(seed)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        """Leaves half of all changes to libFuzzer, which knows what the last ones reached."""
        chance = random.Random(seed)
        if data and chance.random() < 0.5:
            return mutated(chance, [data, *seeds[:1]], max_size)
        made: bytes = atheris.Mutate(data, max_size)
        return made

    arguments: Sequence[str] = (
        sys.argv[0],
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST_INPUT}",
        f"-timeout={SLOWEST_S}",
        f"-artifact_prefix={folder}/",
        "-rss_limit_mb=4096",
        str(folder),
    )
    atheris.Setup(list(arguments), lambda data: target.run(data), custom_mutator=mutate)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
