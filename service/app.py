"""Composes the service: one process, one event loop, one Segmenter behind REST and gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from typing import Any, Final

from service.assembly import Assembly
from service.core.batching.threads import end_all
from service.core.engines.memory import keep_freed_memory
from service.errors import ServiceError, StartError
from service.listening import HttpServer, joined, listen
from service.logs import FLUSH_S, STDERR, configure_logging
from service.loop_watchdog import LoopWatchdog
from service.settings import Settings
from service.tls import Certificates

HEALTH_S: Final = 0.5
"""Between looks at the readiness, for gRPC's health service."""
STDOUT: Final = 1
LOOPBACK: Final = "127.0.0.1"
ENDING_S: Final = 2.0
"""Longest wait for runs that were told to end."""
_log = logging.getLogger("fcn.app")


def serve(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code.

    A start that fails is one line on stderr and exit code 1.
    """
    configure_logging(settings.log_level, settings.log_format)
    keep_freed_memory()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_serve(settings))
    except (ServiceError, StartError) as error:
        for handler in logging.getLogger().handlers:
            handler.flush()
        _say(STDERR, f"fcn serve: {error}")
        return 1


def _say(descriptor: int, line: str) -> None:
    """Writes a line, but waits for no reader who has stopped, and minds none who has left."""

    def write() -> None:
        with contextlib.suppress(OSError):
            os.write(descriptor, f"{line}\n".encode("utf-8", "backslashreplace"))

    writing = threading.Thread(target=write, daemon=True)
    writing.start()
    writing.join(FLUSH_S)


def _leave() -> None:
    logging.shutdown()
    os._exit(1)


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """Returns uvloop's loop where it is installed; it is not on Windows."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.Loop


async def _serve(settings: Settings) -> int:
    """Raises: StartError, ModelLoadError."""
    return await _Server(settings).run()


class _Server:
    """Builds the parts of one server process, runs them, and drains them."""

    def __init__(self, settings: Settings) -> None:
        """Must be made inside the event loop. Raises: StartError."""
        self._settings = settings
        self._admin_sockets: list[socket.socket] = []
        admin_port = settings.admin_port
        if admin_port is not None:  # known by now, for answers that say where it is
            self._admin_sockets = listen(LOOPBACK, admin_port, "FCN_ADMIN_PORT")
            admin_port = self._admin_sockets[0].getsockname()[1]
        self._stopping = asyncio.Event()
        self._draining = False
        self._assembly = assembly = Assembly(
            settings, admin_port=admin_port, wanted=lambda: not self._draining
        )
        self._config, self._segmenter = assembly.config, assembly.segmenter
        self._grpc = assembly.grpc
        files = settings.tls_files()
        self._certificates = (
            None if files is None else Certificates(files, told=assembly.telemetry.certificate)
        )

    async def run(self) -> int:
        """Raises: StartError, ModelLoadError."""
        s, segmenter = self._settings, self._segmenter
        # All ports first: a busy one should be known before minutes go into loading.
        http_sockets = listen(s.host, s.http_port, "FCN_HTTP_PORT")
        grpc_port = self._bind_grpc()
        self._catch_signals()
        LoopWatchdog(_leave).start()
        certificates = self._certificates
        rest, telemetry = self._assembly.rest, self._assembly.telemetry
        http = HttpServer(rest, self._config, telemetry, certificates=certificates)
        serving = asyncio.create_task(http.serve(sockets=[*http_sockets, *self._admin_sockets]))
        await self._grpc.start()
        loading = asyncio.create_task(segmenter.start())
        stop = asyncio.create_task(self._stopping.wait())
        hopeless = asyncio.create_task(segmenter.hopeless.wait())
        watching = asyncio.create_task(self._assembly.keys.watch())
        tasks: list[asyncio.Task[Any]] = [stop, hopeless, watching]
        if certificates is not None:
            tasks.append(asyncio.create_task(certificates.watch()))
        try:
            # From here liveness answers, while readiness waits for the models.
            await asyncio.wait((loading, serving, stop), return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                self._grpc.set_serving(True)
                self._announce(http_sockets[0].getsockname()[1], grpc_port)
                tasks.append(asyncio.create_task(self._tell_health()))
                await asyncio.wait((serving, stop, hopeless), return_when=asyncio.FIRST_COMPLETED)
            if serving.done() and not self._stopping.is_set():
                serving.result()
                raise StartError("the REST server stopped by itself; its log line says why")
        finally:
            for task in tasks:
                task.cancel()
            idle = loading.done()
            loading.cancel()
            idle = await self._drain(http, serving) and idle
            idle = idle and not segmenter.loading
        code = 0
        if segmenter.hopeless.is_set():
            _log.critical("leaving, to be started anew: two models in a minute had to be given up")
            code = 1
        if not (end_all(ENDING_S) and idle):
            # A thread is inside the runtime and does not listen; a normal exit would wait for it.
            logging.shutdown()
            os._exit(code)
        return code

    async def _tell_health(self) -> None:
        """Has gRPC's health service say what `/readyz` says."""
        told = True
        while True:
            await asyncio.sleep(HEALTH_S)
            if told is not (ready := self._segmenter.ready()):
                self._grpc.set_serving(told := ready)

    def _bind_grpc(self) -> int:
        """Returns the port gRPC listens on. Raises: StartError."""
        host, port = self._settings.host, self._settings.grpc_port
        # Tried with a plain socket first: gRPC would log lines of its own about a busy port.
        for tried in listen(host, port, "FCN_GRPC_PORT"):
            tried.close()
        try:
            return self._grpc.bind(joined(host, port), self._certificates)
        except OSError as error:
            raise StartError(f"{error}: set FCN_GRPC_PORT to another port") from error

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        if self._stopping.is_set():
            _log.warning("second signal: leaving at once")
            logging.shutdown()
            os._exit(128 + number)
        self._stopping.set()

    async def _drain(self, http: HttpServer, serving: asyncio.Task[None]) -> bool:
        """Turns unready, takes no new connections, gives the answers still owed, and ends.

        Returns whether all of them could be given within FCN_DRAIN_S.
        """
        config, segmenter = self._config, self._segmenter
        self._draining = True
        self._grpc.retire()
        if self._stopping.is_set():
            _log.info("draining: up to %g s for requests in flight", config.drain_s)
            await asyncio.sleep(config.drain_delay_s)
        ends_s = time.monotonic() + config.drain_s
        http.should_exit = True
        await asyncio.gather(serving, self._grpc.stop(config.drain_s), return_exceptions=True)
        on_time = time.monotonic() < ends_s
        on_time &= await segmenter.drain(max(0.0, ends_s - time.monotonic()))
        if not on_time:
            _log.warning("requests that did not finish within FCN_DRAIN_S were cut off")
        if not await self._assembly.aclose():
            _log.warning("the last spans could not be exported in time")
        if self._stopping.is_set():
            _log.info("stopped")
        return on_time

    def _announce(self, http_port: int, grpc_port: int) -> None:
        """Writes the one line on stdout, for whoever started this; all else is on stderr."""
        host, serving = self._settings.host, self._segmenter.models()
        models = ", ".join(f"{m.name}/{m.default_version}" for m in serving)
        runs = {
            f"{m.default.provider} ({m.default.engine}, {m.default.precision})" for m in serving
        }
        tls, admin_port = self._certificates, self._config.admin_port
        scheme = "https" if tls else "http"
        admin = "" if admin_port is None else f", admin {scheme}://{joined(LOOPBACK, admin_port)}"
        kind = "" if tls is None else " with mTLS" if tls.asks_clients else " with TLS"
        _say(
            STDOUT,
            f"fcn serve: ready: REST {scheme}://{joined(host, http_port)}, "
            f"gRPC {joined(host, grpc_port)}{kind}{admin}, "
            f"serving {models} on {', '.join(sorted(runs))}",
        )
