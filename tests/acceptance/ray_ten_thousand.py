"""Ten thousand drawn images by `fcn predict --ray`, against the server on the same cores; by hand.

`python -m tests.acceptance.ray_ten_thousand MODELS [IMAGES]`, in the environment of ray.txt. MODELS
is a model repository. Every hundredth file is damaged. Prints images per second of both, and
whether every label map is the server's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.drawing import jpeg, street
from tests.serving import running

MODELS = Path(sys.argv[1])
IMAGES = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
DIFFERENT = 200
"""Images that are drawn; each is there many times, under names of its own."""


def predict(*words: object) -> dict[str, object]:
    """Runs the command and returns its report."""
    command = [sys.executable, "-m", "cli.main", "predict", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report: dict[str, object] = json.loads(done.stdout or "{}") or {"stderr": done.stderr}
    return report


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder, served, bulk = (Path(scratch) / name for name in ("images", "served", "bulk"))
        folder.mkdir()
        drawn = [jpeg(street(360, 480, seed=seed)) for seed in range(min(DIFFERENT, IMAGES))]
        for number in range(IMAGES):
            whole = drawn[number % len(drawn)]
            body = whole[:500] if number % 100 == 99 else whole
            (folder / f"{number:06d}.jpg").write_bytes(body)
        options = ("--write", "label_map")
        with running(MODELS, intra_op_threads=1) as server:
            began = time.perf_counter()
            told = predict(folder, "--out", served, "--url", server.url, "--in-flight", 8, *options)
            server_s = time.perf_counter() - began
        began = time.perf_counter()
        report = predict(folder, "--out", bulk, "--ray", "--local", MODELS, *options)
        bulk_s = time.perf_counter() - began
        again = predict(folder, "--out", bulk, "--ray", "--local", MODELS, *options)
        names = sorted(path.name for path in (served / "label_maps").iterdir())
        differing = [
            name
            for name in names
            if (served / "label_maps" / name).read_bytes()
            != (bulk / "label_maps" / name).read_bytes()
        ]
        others = len(list((bulk / "label_maps").iterdir())) - len(names)
        rows = len((bulk / "errors.csv").read_text().splitlines()) - 1
        print(f"server: {told.get('done')} done, {IMAGES / server_s:.1f} images/s")
        print(f"Ray:    {report.get('done')} done, {IMAGES / bulk_s:.1f} images/s, with its start")
        print(f"again:  {again.get('done')} done, {again.get('skipped')} complete before")
        print(f"errors.csv: {rows} rows; label maps that differ: {len(differing)}, more: {others}")


if __name__ == "__main__":
    main()
