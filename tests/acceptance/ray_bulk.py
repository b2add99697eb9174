"""`fcn predict --ray` on a Ray cluster on this machine, beside a server on its own.

`python ray_bulk.py URL FOLDER`, in the environment of ray.txt. URL is of a server over
FOLDER/first, a model repository; FOLDER/images has images, and broken.png, which is none. Prints a
line for each thing that held; a traceback and exit code 1 otherwise.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import boto3
import fsspec
import httpx
import pyarrow
import ray_cluster  # first: see there
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer
from pyarrow import parquet

from cli import _bulk
from cli.main import main
from fcn_client.errors import FcnError
from fcn_client.predict.outputs import JOURNAL
from fcn_client.predict.writer import Writer
from service.settings import load_settings

URL, FOLDER = sys.argv[1], Path(sys.argv[2])
IMAGES, MODELS = FOLDER / "images", FOLDER / "first"
FILES = {path.stem: path.read_bytes() for path in sorted(IMAGES.iterdir())}
GOOD = sorted(FILES.keys() - {"broken"})
BUCKET = "drawn"
STORE_PORT = ray_cluster.free_port()
os.environ |= {  # before the cluster starts, whose workers have it from there
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{STORE_PORT}",
    "AWS_ACCESS_KEY_ID": "anybody",
    "AWS_SECRET_ACCESS_KEY": "anything",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Denied(MemoryFileSystem):
    """A bucket without rights."""

    protocol = "denied"

    def find(self, *args: Any, **more: Any) -> NoReturn:
        raise PermissionError("Access Denied")


def predict(source: object, out: Path, *words: object) -> tuple[int, dict[str, Any], str]:
    """Exit code, report and what is said on stderr."""
    arguments = [source, "--out", out, "--ray", "--local", MODELS, "--write", "label_map", *words]
    said, report = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(report), contextlib.redirect_stderr(said):
        code = main(["predict", "--json", *map(str, arguments)])
    return code, json.loads(report.getvalue() or "{}"), said.getvalue()


def check(condition: bool, what: str, *seen: object) -> None:
    if not condition:
        raise ValueError(f"{what}: {seen}")
    print(what, "ok")


def label_maps(out: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (out / "label_maps").rglob("*.png")}


def errors(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((out / "errors.csv").read_text())))


def folders(right: dict[str, bytes]) -> None:
    out = FOLDER / "out"
    code, report, said = predict(IMAGES, out)
    counts = (code, report.get("done"), len(report.get("failed", [])))
    check(counts == (1, len(GOOD), 1), "all but the damaged one are done", report, said)
    check(label_maps(out) == right, "label maps are the server's, byte for byte")
    (row,) = errors(out)
    check(
        row["source"] == "broken.png" and "damaged" in row["error"],
        "the damaged one has a row in the table of errors",
        row,
    )
    (IMAGES / "broken.png").unlink()
    code, report, said = predict(IMAGES, out)
    check(
        (code, report.get("done"), report.get("skipped")) == (0, 0, len(GOOD))
        and not (out / "errors.csv").exists(),
        "what is complete is not done again",
        report,
        said,
    )


def killed(right: dict[str, bytes], address: str) -> None:
    out = FOLDER / "killed"
    words = [IMAGES, "--out", out, "--ray", "--ray-address", address, "--local", MODELS]
    command = [sys.executable, "-m", "cli.main", "predict", *map(str, words)]
    process = subprocess.Popen([*command, "--write", "label_map"], stderr=subprocess.DEVNULL)
    while process.poll() is None and not (
        (out / JOURNAL).exists() and (out / JOURNAL).stat().st_size
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    code, report, said = predict(IMAGES, out)
    counted = report.get("done", 0) + report.get("skipped", 0)
    check(
        (code, counted) == (0, len(GOOD)) and report["skipped"] > 0,
        "a job that was killed goes on",
        report,
        said,
    )
    names = [json.loads(line)["name"] for line in (out / JOURNAL).read_text().splitlines()]
    check(
        label_maps(out) == right and sorted(names) == GOOD, "each image has one output and one line"
    )


def tables(right: dict[str, bytes]) -> None:
    """Two row groups, in the shape that Hugging Face writes; the last row is no image."""
    chosen = GOOD[:9]
    images = [{"bytes": FILES[name], "path": name} for name in chosen] + [{"bytes": b"no image"}]
    folder = FOLDER / "tables"
    folder.mkdir()
    parquet.write_table(
        pyarrow.table({"photo": images}), folder / "part-0.parquet", row_group_size=5
    )
    out = FOLDER / "out-tables"
    code, report, said = predict(f"file://{folder}", out, "--image-column", "photo")
    found = [label_maps(out).get(f"{row:06d}") for row in range(len(chosen))]
    (row,) = errors(out)
    check(
        code == 1 and found == [right[name] for name in chosen] and row["frame"] == "9",
        "rows of Parquet are done",
        report,
        said,
    )
    code, report, said = predict(folder, FOLDER / "none")
    check(
        code == 1 and "no column 'image'" in report["failed"][0]["error"],
        "a column that is not there is told",
        report,
        said,
    )


def object_store(right: dict[str, bytes]) -> None:
    """moto speaks S3 on a port of this machine."""
    server = ThreadedMotoServer("127.0.0.1", STORE_PORT, verbose=False)
    server.start()
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        for name in GOOD[:10]:
            client.put_object(Bucket=BUCKET, Key=f"photos/{name}.png", Body=FILES[name])
        out = FOLDER / "out-bucket"
        code, report, said = predict(f"s3://{BUCKET}/photos", out)
        check(
            code == 0 and label_maps(out) == {name: right[name] for name in GOOD[:10]},
            "images of a bucket are done",
            report,
            said,
        )
        client.put_object(Bucket=BUCKET, Key=f"photos/{GOOD[0]}.png", Body=FILES[GOOD[1]])
        code, report, said = predict(f"s3://{BUCKET}/photos", out)
        check(
            (code, report.get("done"), report.get("replaced")) == (0, 1, 1),
            "one that was written again is done again",
            report,
            said,
        )
    finally:
        server.stop()


def one_line(what: str, words: str, source: object, *more: object) -> None:
    code, _, said = predict(source, FOLDER / "none", *more)
    check(code == 1 and said.count("\n") == 1 and words in said, f"{what} is one line", said)
    print(said, end="")


def bad_input() -> None:
    fsspec.register_implementation("denied", Denied)
    one_line("a bucket without rights", "Access Denied", "denied://bucket/photos")
    one_line("an unknown address", "nope", "nope://bucket")
    one_line("a bucket that is not there", "does not exist", f"file://{FOLDER}/nowhere")
    one_line("no GPU where one is asked for", "--ray-gpus", IMAGES, "--ray-gpus", 1)
    one_line("more cores than a node has", "--ray-cpus", IMAGES, "--ray-cpus", 64)
    one_line("a missing model", "does not exist", IMAGES, "--local", FOLDER / "nothing")
    job = _bulk.Job(MODELS, load_settings())
    other = _bulk.Known("tiny", "1", "tiny 1 fp32 0123456789abcdef", ())
    out = FOLDER / "out"
    for root, words in ((out, "another network"), (FOLDER / "nowhere", "all nodes share")):
        try:
            _bulk._checked(job, other, Writer(root, (), ("label_map",), 0.5, {}))
        except FcnError as error:
            check(words in str(error), f"a node where things differ says so: {error}")


def run() -> None:
    with httpx.Client(base_url=URL, timeout=60.0) as client:
        right = {name: client.post("/segment", content=FILES[name]).content for name in GOOD}
    with ray_cluster.running([{"num_cpus": 2}]) as cluster:
        folders(right)
        killed(right, cluster.address)
        tables(right)
        object_store(right)
        bad_input()


if __name__ == "__main__":
    run()
