"""Builds REST and gRPC around one segmenter, with what they share."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp

from service.api.call import Calls
from service.api.grpc import segmentation
from service.api.grpc.connections import Connections
from service.api.grpc.handlers import Handlers
from service.api.grpc.segmentation import Segmentation
from service.api.grpc.server import GrpcServer
from service.api.http.cors import with_cors
from service.api.http.middleware import under_prefix
from service.api.http.routes import create_app
from service.api.http.segment import SegmentEndpoint, segment_first
from service.api.keys import Keys
from service.api.limits import Limits
from service.api.oip import grpc as oip_grpc
from service.api.oip.grpc import OipGrpc
from service.api.oip.infer import Inference
from service.api.oip.operations import Operations
from service.api.oip.rest import OipRest
from service.api.oip.statistics import Counts, Statistics
from service.api.uploads import Uploads
from service.config import ApiConfig
from service.core.segmenter import Segmenter
from service.telemetry import Telemetry
from service.tracing import Tracing


def build(
    segmenter: Segmenter,
    telemetry: Telemetry,
    config: ApiConfig,
    *,
    keys: Keys | None,
    ready: Callable[[], bool],
    tracing: Tracing | None = None,
    scrape: Callable[[], Awaitable[bytes]] | None = None,
) -> tuple[ASGIApp, GrpcServer]:
    """Builds them; must be called inside the event loop that runs them.

    keys: None lets everybody in, but nobody to the model repository. ready: whether new requests
    are wanted: models loaded and not draining. tracing: None makes no spans. scrape: makes the page
    of metrics, in Prometheus' text format; None has that of `telemetry` alone.
    """
    calls = Calls(
        telemetry,
        keys,
        deadline_s=config.deadline_s,
        model_label=segmenter.metric_label,
        admin_port=config.admin_port,
        limits=Limits.of(config.limits.split()),
        tracing=tracing,
    )
    uploads = Uploads(
        max_count=config.max_uploads,
        max_bytes=config.max_uploads_bytes,
        timeout_s=config.upload_timeout_s,
        rejected=telemetry.rejected,
    )
    statistics: Statistics = defaultdict(Counts)
    inference = Inference(segmenter, statistics, max_pixels=config.max_image_pixels)
    operations = Operations(segmenter, statistics, ready=ready)

    segment = SegmentEndpoint(
        segmenter,
        uploads,
        max_image_bytes=config.max_image_bytes,
        deadline_s=config.deadline_s,
    )
    app = create_app(
        segmenter, calls, telemetry, config, segment=segment, ready=ready, scrape=scrape
    )
    oip_rest = OipRest(
        segmenter, config, uploads=uploads, inference=inference, operations=operations
    )
    oip_rest.add_to(app)

    closing = asyncio.Event()
    connections = Connections(uploads, closing=closing)
    ours = Segmentation(segmenter, config, uploads, closing=closing)
    grpc = GrpcServer(config, connections)
    grpc.add(segmentation.SERVICE, ours.handler(Handlers(calls, connections, segmentation.SERVICE)))
    oip = OipGrpc(
        segmenter,
        uploads=uploads,
        inference=inference,
        operations=operations,
        max_bytes=config.max_tensor_bytes,
        closing=closing,
    )
    grpc.add(oip_grpc.SERVICE, oip.handler(Handlers(calls, connections, oip_grpc.SERVICE)))
    grpc.add_unknown(Handlers(calls, connections).unknown())
    rest = segment_first(app, segment, calls)
    if config.cors_origins:
        rest = with_cors(rest, calls, config.cors_origins)
    return under_prefix(rest, config.root_path) if config.root_path else rest, grpc
