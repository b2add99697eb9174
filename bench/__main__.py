"""Makes every measurement of `make bench`, one after the other: `python -m bench`."""

from __future__ import annotations

import subprocess
import sys

SCRIPTS = (
    ("bench.networks",),
    ("bench.stages",),
    ("bench.peers", "--page", "docs/results/peers.md"),
    ("bench.peers", "--precision", "int8", "--page", "docs/results/peers.md"),
)


def main() -> int:
    for script in SCRIPTS:
        print(f"== {' '.join(script)}", flush=True)
        # A process each: what one leaves behind (threads, arenas) must not slow the next.
        done = subprocess.run([sys.executable, "-m", *script], check=False)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
