"""Wires the service: one process, one event loop, one Segmenter behind REST and gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Generator

import uvicorn
from fastapi import FastAPI

from service.api.grpc.server import RpcOptions, RpcServer
from service.api.http.direct import DirectProtocol, protocol_class
from service.api.http.routes import RestOptions, create_app
from service.api.http.segment import EndpointOptions, Segmenting
from service.api.http.upload import Uploads
from service.api.keys import KeyFileError, Keys
from service.api.oip import grpc as oip_rpc
from service.api.oip.admin import Admin
from service.api.oip.grpc import OipRpc
from service.api.oip.models import Statistics
from service.api.oip.rest import OipOptions, OipRest
from service.core.engines.memory import keep_freed_memory
from service.core.segmenter import Segmenter
from service.errors import ServiceError
from service.settings import Settings
from service.telemetry import Telemetry, configure_logging

# Longer than the idle time of common load balancers (60 s): the side that reuses a connection
# must not be the one that closes it last.
KEEP_ALIVE_S = 65
BACKLOG = 2048
# What a tensor has around its pixels, in a gRPC message or a body with JSON before it.
TENSOR_OVERHEAD_BYTES = 64 * 1024

_log = logging.getLogger("fcn.app")


class StartError(Exception):
    """The server cannot start; one line that says why and what to do."""


def serve(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code.

    A start that fails is one line on stderr and exit code 1.
    """
    configure_logging(settings.log_level, settings.log_format)
    keep_freed_memory()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_Server(settings).run())
    except (ServiceError, StartError) as error:
        sys.stderr.write(f"fcn serve: {error}\n")
        return 1


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """uvloop's loop where it is installed; it is not on Windows."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.Loop


class _HttpServer(uvicorn.Server):
    """uvicorn, less its signal handlers: the app drains both transports together."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class _Server:
    """The life of one server process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._draining = False
        self._stopping: asyncio.Event

    async def run(self) -> int:
        """Raises: StartError, ModelLoadError."""
        s = self._settings
        self._stopping = asyncio.Event()
        telemetry = Telemetry(s.latency_target_s)
        segmenter = Segmenter(s.segmenter_config(), changed=telemetry.loaded, observer=telemetry)
        keys = _read_keys(s, telemetry)
        deadline_s = s.deadline_ms / 1000
        uploads = Uploads(
            max_count=s.max_uploads,
            max_bytes=s.max_uploads_bytes,
            timeout_s=s.upload_timeout_s,
            rejected=telemetry.rejected,
        )
        # The largest picture fits as pixels, too.
        max_tensor_bytes = max(s.max_image_bytes, 3 * s.max_image_pixels) + TENSOR_OVERHEAD_BYTES

        def ready() -> bool:
            return segmenter.ready() and not self._draining

        segmenting = Segmenting(
            segmenter, EndpointOptions(s.max_image_bytes, deadline_s, s.default_model), keys
        )
        rest = create_app(
            segmenter,
            segmenting,
            telemetry,
            RestOptions(s.max_image_bytes, s.latency_target_s, s.default_model),
            uploads,
            ready,
            keys,
        )
        rpc = RpcServer(
            segmenter,
            telemetry,
            RpcOptions(
                s.max_image_bytes,
                deadline_s,
                s.default_model,
                stream_window=s.stream_window,
                compression=s.grpc_compression,
            ),
            uploads,
            max_tensor_bytes,
            keys,
        )
        oip = (
            segmenter,
            telemetry,
            OipOptions(
                max_json_bytes=s.max_image_bytes,
                max_body_bytes=max_tensor_bytes,
                max_pixels=s.max_image_pixels,
                deadline_s=deadline_s,
            ),
            uploads,
            Statistics(),
            Admin(segmenter, s.read_admin_key()),
            ready,
        )
        OipRest(*oip).add_to(rest)
        rpc.add(oip_rpc.SERVICE, OipRpc(*oip).handler())
        # Both ports first: a busy one should be known before minutes go into loading.
        http_socket = _listen(s.host, s.http_port, "FCN_HTTP_PORT")
        grpc_port = _bind_grpc(rpc, s.host, s.grpc_port)
        http_port = http_socket.getsockname()[1]

        self._catch_signals()
        direct = protocol_class(segmenting, uploads, telemetry)
        http = _HttpServer(_http_config(rest, direct, s))
        serving = asyncio.create_task(http.serve(sockets=[http_socket]))
        await rpc.start()
        loading = asyncio.create_task(segmenter.start())
        stop = asyncio.create_task(self._stopping.wait())
        watching = None if keys is None else asyncio.create_task(keys.watch())
        try:
            # From here liveness answers, while readiness waits for the models.
            await asyncio.wait((loading, serving, stop), return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                await rpc.set_serving(True)
                _announce(segmenter, s.host, http_port, grpc_port)
                await asyncio.wait((serving, stop), return_when=asyncio.FIRST_COMPLETED)
            if serving.done() and not self._stopping.is_set():
                serving.result()
                raise StartError("the REST server stopped by itself; its log line says why")
        finally:
            stop.cancel()
            if watching is not None:
                watching.cancel()
            idle = loading.done()
            loading.cancel()
            idle = await self._drain(http, serving, rpc, segmenter) and idle
            idle = idle and not segmenter.loading
        if not idle:
            # A thread is inside the runtime, which cannot be interrupted; a normal exit would
            # wait for it.
            logging.shutdown()
            os._exit(0)
        return 0

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        if self._stopping.is_set():
            _log.warning("second signal: leaving at once")
            os._exit(128 + number)
        self._stopping.set()

    async def _drain(
        self,
        http: uvicorn.Server,
        serving: asyncio.Task[None],
        rpc: RpcServer,
        segmenter: Segmenter,
    ) -> bool:
        """Unready, then no new connections, then the answers still owed, then the end.

        Returns whether all of them could be given within FCN_DRAIN_S.
        """
        s = self._settings
        self._draining = True
        await rpc.retire()
        if self._stopping.is_set():
            _log.info("draining: up to %g s for requests in flight", s.drain_s)
            await asyncio.sleep(s.drain_delay_s)
        ends_s = time.monotonic() + s.drain_s
        http.should_exit = True
        await asyncio.gather(serving, rpc.stop(s.drain_s), return_exceptions=True)
        on_time = time.monotonic() < ends_s
        on_time &= await segmenter.drain(max(0.0, ends_s - time.monotonic()))
        if not on_time:
            _log.warning("requests that did not finish within FCN_DRAIN_S were cut off")
        await segmenter.aclose()
        if self._stopping.is_set():
            _log.info("stopped")
        return on_time


def _read_keys(settings: Settings, telemetry: Telemetry) -> Keys | None:
    """None without a file. Raises: StartError."""
    if settings.api_keys_file is None:
        return None
    try:
        return Keys(
            settings.api_keys_file,
            admin_key=settings.read_admin_key(),
            rejected=telemetry.rejected,
        )
    except KeyFileError as error:
        raise StartError(str(error)) from error


def _http_config(rest: FastAPI, direct: type[DirectProtocol], settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        rest,
        http=direct,
        log_config=None,
        proxy_headers=False,  # nobody asks for the caller's address
        access_log=False,  # one line per request comes from telemetry
        lifespan="off",
        ws="none",
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.drain_s),
    )


def _listen(host: str, port: int, setting: str) -> socket.socket:
    """A listening socket. Raises: StartError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartError(f"cannot listen on host {host!r} (FCN_HOST): {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(
            f"cannot listen on {_joined(host, port)}: {error.strerror}: stop what uses the port, "
            f"or set {setting} to another"
        ) from error
    listener.setblocking(False)
    return listener


def _bind_grpc(rpc: RpcServer, host: str, port: int) -> int:
    """The port gRPC listens on. Raises: StartError."""
    # Tried with a plain socket first: gRPC would log lines of its own about a busy port.
    _listen(host, port, "FCN_GRPC_PORT").close()
    try:
        return rpc.bind(_joined(host, port))
    except OSError as error:
        raise StartError(f"{error}: set FCN_GRPC_PORT to another port") from error


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _announce(segmenter: Segmenter, host: str, http_port: int, grpc_port: int) -> None:
    """The one line on stdout, for whoever started this; everything else is on stderr."""
    models = ", ".join(f"{m.name}/{m.default_version}" for m in segmenter.models())
    providers = sorted({m.default.provider for m in segmenter.models()})
    sys.stdout.write(
        f"fcn serve: ready: REST http://{_joined(host, http_port)}, "
        f"gRPC {_joined(host, grpc_port)}, serving {models} on {', '.join(providers)}\n"
    )
    sys.stdout.flush()
