"""Assembles what answers requests: one segmenter, its metrics and keys, REST and gRPC around them.

`service.app` puts it behind ports of its own, `service.ray_serve` behind those of Ray's proxies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from service.api.keys import Keys
from service.api.transports import build
from service.core.engines.memory import available_memory_bytes
from service.core.segmenter import Segmenter
from service.setting_values import otlp_protocol
from service.settings import Settings
from service.telemetry import Telemetry
from service.tracing import Tracing


class Assembly:
    """Holds the parts of one process; must be made inside the event loop that runs them.

    rest: an ASGI application. grpc: its services, and the server that may listen for them.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        admin_port: int | None = None,
        wanted: Callable[[], bool] = lambda: True,
        scrape: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        """admin_port: the one that is listened on, where the setting leaves it to the system.
        wanted: whether new requests are, so far as the models could answer them. scrape: makes the
        page of metrics, in place of this process's own. Raises: StartError, ValueError."""
        config = settings.api_config()
        if admin_port is not None:
            config = replace(config, admin_port=admin_port)
        self.config = config
        self.telemetry = telemetry = Telemetry(
            config.latency_target_s,
            latency_target_pixels=config.latency_target_pixels,
            memory_limit_bytes=available_memory_bytes(),
        )
        self.segmenter = segmenter = Segmenter(
            settings.segmenter_config(), changed=telemetry.loaded, observer=telemetry
        )
        self.keys = Keys(
            settings.api_keys_file,
            admin_key=settings.read_admin_key(),
            rejected=telemetry.rejected,
            stale=telemetry.keys_stale,
            wrong=telemetry.wrong_key,
        )
        self.tracing = Tracing(otlp_protocol()) if settings.tracing == "otlp" else None
        self.rest, self.grpc = build(
            segmenter,
            telemetry,
            config,
            keys=self.keys,
            ready=lambda: segmenter.ready() and wanted(),
            tracing=self.tracing,
            scrape=scrape,
        )

    async def aclose(self) -> bool:
        """Closes the segmenter and exports the last spans; tells whether those left in time."""
        await self.segmenter.aclose()
        return self.tracing is None or await asyncio.to_thread(self.tracing.close)
