"""Does the work of `fcn predict --ray`: the images of a source, by Ray Data's workers.

Each worker holds the service's segmenter, as `fcn predict --local` does, reads its images itself
and writes their outputs itself; what comes back is a line of the journal for each. The folder's
journal is written here alone, so that the same command again does what is missing. An output has
the name of its image and appears whole: an image that Ray has done twice, because a node died, has
one.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cli._bulk_sources import Entry, Source
from cli._local import LocalLabeller
from fcn_client.errors import FcnError
from fcn_client.predict import Folder, Item, Outcome
from fcn_client.predict.inputs import printable
from fcn_client.predict.job import Summary
from fcn_client.predict.outputs import JOURNAL, read_record, write_record
from fcn_client.predict.writer import Writer
from fcn_client.predict.writer import replace as replace_file
from fcn_client.progress import progress_bar
from fcn_client.types import ClassInfo
from service.core.engines.cores import threads_within
from service.core.types import Scale
from service.errors import ServiceError
from service.settings import Settings

ERRORS: Final = "errors.csv"
BATCH: Final = 16
"""Images that a worker is given at a time; those of a node that dies are done again."""
STORE_BYTES: Final = 128 * 1024 * 1024
"""Limits the object store of a cluster that is started for the job: it holds names, not images."""


@dataclass(frozen=True)
class Job:
    """Says what a worker is to run; every worker has a copy. model: a file or a repository, where
    the nodes have it. num_cpus, num_gpus: of each worker. in_flight: images at a time, of each."""

    model: Path
    settings: Settings
    name: str | None = None
    version: str | None = None
    keep: tuple[str, ...] = ()
    scale: Scale = "auto"
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    in_flight: int = 2

    def labeller(self) -> LocalLabeller:
        """Loads the model, for as many threads as the worker has cores. Raises: FcnError,
        ServiceError."""
        threads = threads_within(self.num_cpus, with_gpu=self.num_gpus > 0)
        given = self.settings.model_fields_set
        free = {name: value for name, value in threads.items() if name not in given}
        settings = self.settings.model_copy(update=free)
        return LocalLabeller(self.model, settings, self.name, self.version, self.keep, self.scale)


@dataclass
class Known:
    """Says of the network what an output folder must know, in place of a labeller."""

    name: str
    version: str
    identity: str
    classes: tuple[ClassInfo, ...]

    def __call__(self, image: bytes, /) -> bytes:
        raise NotImplementedError("the workers label")

    def close(self) -> None:
        pass


class Worker:
    """Labels batches of entries on one node, and writes their outputs there.

    Faults of the node come back as rows, too: Ray would start a worker that raises again and again.
    """

    def __init__(self, job: Job, known: Known, source: Source, writer: Writer) -> None:
        self._source, self._writer, self._fault = source, writer, ""
        self._labeller: LocalLabeller | None = None
        self._pool = ThreadPoolExecutor(job.in_flight)
        try:
            self._labeller = _checked(job, known, writer)
        except (FcnError, ServiceError, OSError) as error:
            self._fault = f"{_node()}: {error}"

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Takes columns of `Entry`, and returns for each a `record`, an `error` or a `fault`."""
        columns = (batch[name].tolist() for name in Entry._fields)
        entries = [Entry(*values) for values in zip(*columns, strict=True)]
        rows = list(self._pool.map(self._one, entries))
        records, errors, faults = (list(column) for column in zip(*rows, strict=True))
        return {
            "source": [entry.source for entry in entries],
            "frame": [str(entry.frame) for entry in entries],
            "record": records,
            "error": errors,
            "fault": faults,
        }

    def close(self) -> None:
        """Ends the model's threads; Ray ends a worker with its process."""
        self._pool.shutdown()
        if self._labeller is not None:
            self._labeller.close()

    def _one(self, entry: Entry) -> tuple[str, str, str]:
        if self._labeller is None:
            return "", "", self._fault
        try:
            image = self._source.read(entry)
            record = self._writer(_item(entry), image, self._labeller(image))
            return write_record(record), "", ""
        except FcnError as error:
            return "", str(error), ""
        except OSError as error:  # of the output folder, which all images share
            return "", "", f"{_node()}: {self._writer.root} cannot be written: {error}"
        except Exception as error:  # whatever it is about this one, the others are not to suffer
            return "", f"{type(error).__name__}: {error}", ""


def predict(
    source: Source,
    out: Path,
    job: Job,
    *,
    address: str | None,
    workers: int | None,
    recursive: bool,
    write: Sequence[str],
    alpha: float,
    afresh: bool,
    progress: bool,
) -> Outcome:
    """Writes what is missing. address: of a Ray cluster; None starts one here, for the job.
    workers: None for as many as the cluster has room for.

    Raises: FcnError, ServiceError, OSError.
    """
    import ray

    listing = source.listing(recursive=recursive, leave_out=out)
    with _cluster(address):
        room = _room(job)
        known = _ask(job)
        folder = Folder(out, known, write=write, alpha=alpha, keep=job.keep, afresh=afresh)
        summary = Summary()
        failures = summary.failures
        failures += [(source, None, why) for source, why in listing.unusable]
        with closing(folder), progress_bar(progress, len(listing.entries)) as bar:
            missing = []
            for entry in listing.entries:
                item = _item(entry)
                if other := folder.claim(item):
                    why = f"its outputs would take the place of those of {other}: rename it"
                    failures.append((entry.source, item.frame, why))
                elif folder.holds(item):
                    summary.skipped += 1
                else:
                    missing.append(entry)
            bar.update(len(listing.entries) - len(missing))
            try:
                for row in _rows(missing, (job, known, source, folder.write), workers or room):
                    if row["fault"]:
                        raise FcnError(row["fault"])
                    if row["error"]:
                        frame = None if row["frame"] == "-1" else int(row["frame"])
                        failures.append((printable(row["source"]), frame, printable(row["error"])))
                    else:
                        summary.replaced += folder.note(read_record(row["record"]))
                        summary.done += 1
                    bar.update()
            except ray.exceptions.RayError as error:
                said = str(error).strip().splitlines()[-1:] or [type(error).__name__]
                raise FcnError(
                    f"Ray gave up after {summary.done} images: {said[0]}: the same command goes on "
                    "from there"
                ) from error
    summary.kept = folder.unclaimed()
    failures.sort(key=lambda failure: (failure[0], failure[1] or 0))
    _write_errors(out / ERRORS, failures)
    return Outcome(known, folder, summary, listing.ignored)


def _rows(missing: Sequence[Entry], arguments: tuple[Any, ...], workers: int) -> Iterator[Any]:
    """Yields what the workers say, as they say it."""
    import ray.data

    if not missing:
        return
    job = arguments[0]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    n_blocks = max(1, -(-len(missing) // BATCH))
    dataset = ray.data.from_items(
        [entry._asdict() for entry in missing], override_num_blocks=n_blocks
    ).map_batches(
        Worker,
        fn_constructor_args=arguments,
        batch_size=BATCH,
        batch_format="numpy",
        num_cpus=job.num_cpus,
        num_gpus=job.num_gpus,
        compute=ray.data.ActorPoolStrategy(size=min(workers, n_blocks)),
    )
    yield from dataset.iter_rows()


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Joins a cluster for the block, or starts one; one that this process has joined is left.

    Raises: FcnError.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # as ONNX Runtime's: nobody is told
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it writes to stderr, past any log
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "runtime_env": {"env_vars": {"ORT_DISABLE_TELEMETRY": "1"}},
    }
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        ray.init(address=address or "local", **options)
    except Exception as error:  # Ray has no class for it
        said = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise FcnError(
            f"no Ray cluster {'starts here' if address is None else f'at {address}'}: {said[0]}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _room(job: Job) -> int:
    """Counts the workers that the cluster has room for. Raises: FcnError for none."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": job.num_cpus, "GPU": job.num_gpus}
    flags = {"CPU": "--ray-cpus", "GPU": "--ray-gpus"}
    for kind, each in wanted.items():
        if each and not any(node.get(kind, 0.0) >= each for node in nodes):
            raise FcnError(
                f"{each:g} {kind} is asked for ({flags[kind]}), and no node of this Ray cluster "
                "has so many: ask for fewer, or add a node"
            )
    fits = (
        min(int(node.get(kind, 0.0) / each) for kind, each in wanted.items() if each)
        for node in nodes
    )
    return sum(fits)


def _ask(job: Job) -> Known:
    """Has a worker's place load the model: which file runs there depends on its hardware, not on
    that of this machine. Raises: FcnError."""
    import ray

    describe = ray.remote(_describe).options(
        num_cpus=job.num_cpus, num_gpus=job.num_gpus, max_retries=0
    )
    known: Known | str = ray.get(describe.remote(job))
    if isinstance(known, str):
        raise FcnError(known)
    return known


def _describe(job: Job) -> Known | str:
    """Says what a worker would run, or why it cannot: Ray would put a traceback around an error."""
    try:
        with closing(job.labeller()) as found:
            return Known(found.name, found.version, found.identity, found.classes)
    except (FcnError, ServiceError, OSError) as error:
        return f"{_node()}: {error}"


def _checked(job: Job, known: Known, writer: Writer) -> LocalLabeller:
    """Loads the model, if it is the right one and its outputs will be where the others' are.

    Raises: FcnError, ServiceError, OSError.
    """
    if not (writer.root / JOURNAL).is_file():
        raise FcnError(f"{writer.root} is not there: give an --out that all nodes share")
    labeller = job.labeller()
    if labeller.identity != known.identity:
        labeller.close()
        raise FcnError(
            f"{job.model} is another network there, {labeller.identity}, than {known.identity}: "
            "give all nodes the same files, and those of one kind the work"
        )
    return labeller


def _item(entry: Entry) -> Item:
    frame = None if entry.frame < 0 else entry.frame
    return Item(entry.source, frame, entry.name, (entry.size, entry.changed), bytes)


def _node() -> str:
    import ray

    return f"node {ray.util.get_node_ip_address()}"


def _write_errors(path: Path, failures: Sequence[tuple[str, int | None, str]]) -> None:
    """Writes a row for each image that failed in this run; without any there is no file."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["source", "frame", "error"])
    rows.writerows([source, "" if frame is None else frame, why] for source, frame, why in failures)
    replace_file(path, text.getvalue().encode())
