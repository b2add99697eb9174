"""The service on a Ray cluster of two nodes on this machine, beside a server on its own.

`python ray_serve.py URL TARGET FOLDER`, in the environment of ray.txt. URL and TARGET are of a
server over FOLDER/first, a model repository with `tiny` version 1. FOLDER/second has version 2 as
well, FOLDER/image.png an image that takes a while, FOLDER/broken.png half of one. Prints a line for
each thing that held; a traceback and exit code 1 otherwise.
"""

from __future__ import annotations

import copy
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import ray_cluster  # first: see there
import yaml
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve._private.api import serve_start
from ray.serve.config import gRPCOptions
from ray.serve.schema import ServeDeploySchema

from fcn_client import FcnClient, FcnError, UnknownVersion
from fcn_client.stubs import segmentation_pb2 as pb
from fcn_client.stubs import segmentation_pb2_grpc as pb_grpc
from service import ray_serve

URL, TARGET, FOLDER = sys.argv[1:]
IMAGE = (Path(FOLDER) / "image.png").read_bytes()
BROKEN = (Path(FOLDER) / "broken.png").read_bytes()
CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "ray" / "serve.yaml"
OUTPUTS = ("label_map", "overlay", "color", "rle", "polygons")  # json tells how long it took
CALLERS = 6
APPLICATION = {"application": "fcn"}
"""Ray's gRPC proxies refuse calls without it while they know several applications."""


PORTS = [(ray_cluster.free_port(), ray_cluster.free_port()) for _ in range(2)]
HTTP = [f"http://127.0.0.1:{http}" for http, _ in PORTS]
GRPC = [f"grpc://127.0.0.1:{port}" for _, port in PORTS]


def until(condition: Callable[[], object], what: str, seconds: float = 240.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError(f"{what} did not come about: {serve.status()}")
        time.sleep(0.1)


def config(**repositories: str) -> ServeDeploySchema:
    """Reads deploy/ray/serve.yaml and makes it smaller: an application for each repository."""
    document = yaml.safe_load(CONFIG.read_text())
    document["http_options"] |= {"host": "127.0.0.1", "port": PORTS[0][0]}
    document["grpc_options"]["port"] = PORTS[0][1]
    (model,) = document["applications"]
    document["applications"] = []
    for name, repository in repositories.items():
        made = copy.deepcopy(model) | {"name": name}
        made["args"] |= {"num_cpus": 1, "num_gpus": 1 if name == "gpu" else 0}
        # Processes that decode are given up after a while, which a busy machine needs for itself.
        made["args"]["settings"] |= {
            "model_repository": f"{FOLDER}/{repository}",
            "decode": "threads",
        }
        (deployment,) = made["deployments"]
        scaling = deployment["autoscaling_config"] | {"min_replicas": 2, "max_replicas": 2}
        deployment |= {"autoscaling_config": scaling, "health_check_period_s": 1}
        if name != "fcn":
            made["route_prefix"] = f"/{name}"
            deployment |= {"ray_actor_options": {"num_cpus": 0}, "autoscaling_config": None}
            deployment |= {"num_replicas": 1, "max_constructor_retry_count": 1}
        document["applications"].append(made)
    return ServeDeploySchema.model_validate(document)


def deploy(**repositories: str) -> None:
    """Does what `serve run` does with a config."""
    wanted = config(**repositories)
    client = serve_start(
        http_options=wanted.http_options.model_dump(),
        grpc_options=gRPCOptions(**wanted.grpc_options.model_dump()),
        proxy_location=wanted.proxy_location,
    )
    client.deploy_apps(wanted)


def status(name: str = "fcn") -> Any:
    return serve.status().applications[name]


def running() -> int:
    found = status().deployments.get(ray_serve.NAME)
    return 0 if found is None else found.replica_states.get("RUNNING", 0)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Two nodes, with room for one replica each."""
    ports = {
        "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(PORTS[1][0]),
        "RAY_SERVE_WORKER_PROXY_GRPC_PORT": str(PORTS[1][1]),
    }
    nodes = [{"num_cpus": 1}, {"num_cpus": 1, "env_vars": ports}]
    with ray_cluster.running(nodes) as made:
        yield made
        serve.shutdown()


class Load:
    """Callers that ask without a pause, each with `ask`, and count what becomes of it."""

    def __init__(self, ask: Callable[[], str]) -> None:
        self.counts: Counter[str] = Counter()
        self._over = threading.Event()
        self._ask = ask
        self._threads = [threading.Thread(target=self._run) for _ in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                answer = self._ask()
            except (FcnError, httpx.HTTPError) as error:
                answer = f"lost: {type(error).__name__}: {error}"
            self.counts[answer] += 1

    def stop(self) -> Counter[str]:
        self._over.set()
        for thread in self._threads:
            thread.join()
        return self.counts

    def lost(self) -> int:
        return sum(n for answer, n in self.counts.items() if answer.startswith("lost"))


def same_answers() -> None:
    with httpx.Client(timeout=60.0) as client:
        for output in OUTPUTS:
            theirs = client.post(f"{URL}/segment?output={output}", content=IMAGE)
            for url in HTTP:
                ours = client.post(f"{url}/segment?output={output}", content=IMAGE)
                if (ours.status_code, ours.content) != (theirs.status_code, theirs.content):
                    raise ValueError(f"{output}: {ours.status_code} {ours.content[:300]!r}")
        print("REST gives the server's bytes ok")
        refused = client.post(f"{HTTP[0]}/segment", content=BROKEN)
        alone = client.post(f"{URL}/segment", content=BROKEN)
        if (refused.status_code, refused.json()["detail"]) != (400, alone.json()["detail"]):
            raise ValueError(refused.text)
        print("REST says what is wrong with a damaged image ok")
        answers = [client.get(f"{HTTP[0]}/metrics").text for _ in range(2)]
    wanted = 'fcn_requests_total{code="200",method="Segment",model="tiny",replica='
    lines = [line for line in answers[-1].splitlines() if line.startswith(wanted)]
    if len(lines) != 2:
        raise ValueError(answers[-1])
    print("metrics of both replicas have their names ok")


def same_answers_over_grpc() -> None:
    def stub(target: str) -> pb_grpc.SegmentationStub:
        return pb_grpc.SegmentationStub(grpc.insecure_channel(target))

    request = {"image": IMAGE, "model": "tiny"}
    for output in OUTPUTS:
        number = pb.Output.Value(f"OUTPUT_{output.upper()}")
        theirs = stub(TARGET).Segment(pb.SegmentRequest(output=number, **request))
        for url in GRPC:
            ours = stub(url.removeprefix("grpc://")).Segment(
                pb.SegmentRequest(output=number, **request)
            )
            if (ours.body, ours.media_type) != (theirs.body, theirs.media_type):
                raise ValueError(f"{output} over {url}")
    print("gRPC gives the server's bytes ok")
    with FcnClient(GRPC) as client:
        if not client.ready() or [m.name for m in client.models()] != ["tiny"]:
            raise ValueError("readiness or models")
        found = list(client.segment_stream([IMAGE] * 5))
        bodies = {outcome.unwrap().body for outcome in found}
        if bodies != {client.segment(IMAGE).body}:
            raise ValueError("a stream answers otherwise")
        print("gRPC streams, lists models and tells its health ok")
        said = []
        for target in (TARGET, GRPC[0].removeprefix("grpc://")):
            with FcnClient(f"grpc://{target}") as one:
                try:
                    one.segment(IMAGE, version="2")
                except UnknownVersion as error:
                    said.append(str(error))
                try:
                    one.segment(BROKEN)
                except FcnError as error:
                    said.append(f"{type(error).__name__} {error}")
        if len(said) != 4 or said[:2] != said[2:]:
            raise ValueError(said)
        print(f"a replica of another version says so ok: {said[0]}")


def segment(client: FcnClient) -> Callable[[], str]:
    return lambda: client.segment(IMAGE).version


def rolling_update() -> None:
    over_grpc = FcnClient(GRPC[0], headers=APPLICATION)
    with FcnClient(HTTP[0]) as rest, over_grpc:
        loads = [Load(segment(client)) for client in (rest, over_grpc)]
        until(lambda: all(load.counts["1"] > 5 for load in loads), "answers of version 1")
        deploy(fcn="second")
        now = [load.counts["2"] for load in loads]
        until(
            lambda: all(load.counts["2"] > n + 5 for load, n in zip(loads, now, strict=True)),
            "answers of version 2",
        )
        counts = sum((load.stop() for load in loads), Counter())
    if set(counts) != {"1", "2"}:
        raise ValueError(counts)
    print(f"a rolling update of the model loses nothing ok: {dict(counts)}")


def killed_node(made: Cluster) -> None:
    def once() -> str:
        with httpx.Client(timeout=60.0) as client:
            reply = client.post(f"{HTTP[0]}/segment", content=IMAGE)
        return "answered" if reply.status_code == 200 else f"lost: {reply.status_code}"

    until(lambda: running() == 2 and all(map(answers, HTTP)), "two replicas and proxies")
    with FcnClient(HTTP) as rest, FcnClient(GRPC, headers=APPLICATION) as over_grpc:
        loads = [Load(once), Load(segment(rest)), Load(segment(over_grpc))]
        until(lambda: all(sum(load.counts.values()) > 10 for load in loads), "answers")
        node = next(iter(made.worker_nodes))
        made.remove_node(node, allow_graceful=False)
        then = [sum(load.counts.values()) for load in loads]
        until(lambda: running() == 1, "one replica is left")
        until(
            lambda: all(
                sum(load.counts.values()) > n + 10 for load, n in zip(loads, then, strict=True)
            ),
            "answers of the node that is left",
        )
        for load in loads:
            load.stop()
    without, *with_retries = (load.lost() for load in loads)
    if any(with_retries):
        raise ValueError([dict(load.counts) for load in loads])
    print(f"a node killed under load loses nothing that fcn_client asks ok ({without} without it)")


def bad_starts() -> None:
    deploy(fcn="first", model="nothing", gpu="first")
    for name, words in (("model", "is not a folder"), ("gpu", "no node of this Ray cluster")):
        until(lambda name=name: status(name).status == "DEPLOY_FAILED", name)
        app = status(name)
        told = [app.message, *(deployment.message for deployment in app.deployments.values())]
        lines = {line for text in told for line in text.splitlines() if words in line}
        lines = {
            line for line in lines if line.startswith(("RuntimeError: node", "service.errors"))
        }
        if len(lines) != 1:
            raise ValueError(told)
        print(f"a missing {name} is said in one line ok: {lines.pop()}")
    deploy(fcn="first")


def one_of_several() -> None:
    """While an application is deployed beside `fcn`, gRPC calls have to name theirs."""
    deploy(fcn="first", other="second")
    until(lambda: status("other").status == "RUNNING", "a second application")

    def said(**headers: str) -> str:
        with FcnClient(GRPC[0], headers=headers) as client:
            try:
                return client.segment(IMAGE).version
            except FcnError as error:
                return str(error)

    until(lambda: said(application="other") == "2", "the other application's answer")
    if said(application="fcn") != "1":
        raise ValueError("the first application is not found by its name")
    without = said()
    if "Application metadata not set" not in without:
        raise ValueError(without)
    print(f"gRPC calls name one of several applications ok: without, {without}")
    deploy(fcn="first")


def main() -> None:
    with cluster() as made:
        deploy(fcn="first")
        until(lambda: running() == 2 and all(map(answers, HTTP)), "two replicas and proxies")
        same_answers()
        same_answers_over_grpc()
        bad_starts()
        one_of_several()
        rolling_update()
        killed_node(made)


if __name__ == "__main__":
    main()
