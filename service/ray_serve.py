"""Runs the server in replicas of Ray Serve: the same REST application and gRPC services.

    serve deploy deploy/ray/serve.yaml

A replica holds what a process of `fcn serve` does, less its ports: Ray's proxies have those, and
choose the replica. docs/ray.md says what else is different.
"""

# No `from __future__ import annotations`: Ray asks for the class that `app` takes.

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any, Final

import ray
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.grpc_util import RayServegRPCContext, gRPCInputStream

from service.api.grpc.relayed import Message, Method, Relay, methods
from service.assembly import Assembly
from service.core.engines.cores import threads_within
from service.core.engines.memory import keep_freed_memory
from service.errors import ServiceError, StartError
from service.logs import configure_logging
from service.scrapes import joined
from service.settings import SettingsError, environment_name, load_settings

NAME: Final = "Segmentation"
"""Names the deployment, for `deployments` in Ray's config."""
SCRAPE_S: Final = 5.0
"""How long a replica may take to say its metrics; Prometheus waits 10 s by default."""


class Arguments(BaseModel):
    """Holds `args` of the application in Ray's config.

    settings: those of the server, by name in lower case without FCN_, over what the environment of
    a replica says. num_cpus, num_gpus: of each replica; a part of a GPU, too. wait_for_gpus: a
    cluster without the GPUs that one replica asks for is not refused, for it may grow.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    settings: dict[str, Any] = {}
    num_cpus: float = Field(1.0, gt=0)
    num_gpus: float = Field(0.0, ge=0)
    wait_for_gpus: bool = False


def app(arguments: Arguments) -> serve.Application:
    """Makes the application for Ray. Raises: StartError, SettingsError."""
    load_settings(arguments.settings)
    check_gpus(arguments.num_gpus, arguments.wait_for_gpus)
    options = {"num_cpus": arguments.num_cpus, "num_gpus": arguments.num_gpus}
    deployment = serve.deployment(serve.ingress()(Replica)).options(
        name=NAME,
        ray_actor_options=options,
        # A replica batches what it is given at once, and refuses what it could not do in time.
        max_ongoing_requests=64,
        health_check_period_s=5.0,
        health_check_timeout_s=15.0,
        graceful_shutdown_wait_loop_s=1.0,
        graceful_shutdown_timeout_s=30.0,
    )
    return deployment.bind(_shared_out(arguments))


def check_gpus(wanted: float, may_come: bool = False) -> None:
    """Refuses to wait for what the cluster does not have. Raises: StartError."""
    if not wanted or may_come:
        return
    there = max(
        (node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0
    )
    if there < min(wanted, 1.0):
        raise StartError(
            f"{wanted:g} GPU is asked for, and no node of this Ray cluster has so many: ask for 0, "
            "or add a node with a GPU"
        )


def _shared_out(arguments: Arguments) -> dict[str, Any]:
    """Gives a replica as many threads as it has of the node's cores, which others share."""
    threads = threads_within(arguments.num_cpus, with_gpu=arguments.num_gpus > 0)
    free = {
        name: value for name, value in threads.items() if environment_name(name) not in os.environ
    }
    return {**free, **arguments.settings}


class Replica:
    """Answers what a proxy sends: HTTP by the ASGI application, gRPC by a method for each method.

    Ray calls everything here in one event loop.
    """

    async def __init__(  # type: ignore[misc]  # as Ray allows
        self, settings: dict[str, Any]
    ) -> None:
        """Raises: RuntimeError, with the node in it, where the server would not start."""
        context = serve.get_replica_context()
        self._name = context.replica_tag
        self._handle = serve.get_deployment_handle(context.deployment, context.app_name)
        try:
            loaded = load_settings(settings)
            configure_logging(loaded.log_level, loaded.log_format)
            keep_freed_memory()
            self._assembly = Assembly(loaded, scrape=self._scrape_all)
            await self._assembly.segmenter.start()
        except (ServiceError, StartError, SettingsError) as error:
            raise RuntimeError(f"node {ray.util.get_node_ip_address()}: {error}") from None
        self._assembly.grpc.set_serving(True)
        self._relay = Relay(self._assembly.grpc.handlers())
        self._watching = asyncio.create_task(self._assembly.keys.watch())

    def __serve_build_asgi_app__(self) -> Any:
        """Returns the ASGI application."""
        return self._assembly.rest

    async def check_health(self) -> None:
        """Has Ray put another replica in this one's place when no model can run here any more.

        Raises: RuntimeError.
        """
        segmenter = self._assembly.segmenter
        self._assembly.grpc.set_serving(segmenter.ready())
        if segmenter.hopeless.is_set():
            raise RuntimeError("two models in a minute had to be given up")

    async def scrape(self) -> tuple[str, str]:
        """Returns the replica's name, and its metrics in Prometheus' text format."""
        return self._name, self._assembly.telemetry.scrape().decode()

    async def _scrape_all(self) -> bytes:
        """Asks every replica: a scrape reaches one of them, and does not know which."""
        asked = self._handle.broadcast("scrape")
        found = await asked.results_async(timeout_s=SCRAPE_S, return_exceptions=True)
        pages = dict(page for page in found if not isinstance(page, BaseException))
        return joined(pages | dict([await self.scrape()]), "replica")

    async def __del__(self) -> None:
        if (watching := getattr(self, "_watching", None)) is not None:
            watching.cancel()
            await self._assembly.aclose()


def _answer(method: Method) -> Any:
    """Makes what Ray calls for one gRPC method; it knows the context by its name."""

    async def unary(self: Replica, message: bytes, grpc_context: RayServegRPCContext) -> Message:
        return await self._relay.unary(method, message, grpc_context)

    async def stream(
        self: Replica, messages: gRPCInputStream, grpc_context: RayServegRPCContext
    ) -> AsyncIterator[Message]:
        sent = messages if method.asks else _one(messages)
        async for answer in self._relay.stream(method, sent, grpc_context):
            yield answer

    return stream if method.answers else unary


async def _one(message: bytes) -> AsyncIterator[bytes]:
    yield message


for _method in methods():
    setattr(Replica, _method.name, _answer(_method))
