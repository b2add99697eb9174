"""Holds what a segmenter and the transports are built from; every default is told here, once.

`service.settings` fills them from the environment and flags. The server, `fcn predict --local` and
whoever embeds the segmenter build it from the same ones, so that it gives the same answers
everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ENGINES: Final = ("auto", "onnxruntime", "openvino")
PRECISIONS: Final = ("auto", "fp32", "fp16", "bf16", "int8")

ProviderOptions = Mapping[str, Mapping[str, str]]
"""Options of ONNX Runtime's GPU providers, by "cuda" or "tensorrt", over the service's own."""

_TENSOR_OVERHEAD_BYTES: Final = 64 * 1024
"""Bytes that a tensor has around its pixels, in a gRPC message or a body with JSON before it."""


@dataclass(frozen=True)
class SegmenterConfig:
    """Says how a segmenter finds its models, runs them, and how much it takes on at once.

    model_repository: see `service.core.models.repository`. model_poll_s: seconds between looks for
    new, changed and removed models; 0: never. default_model: used when none is asked for.

    provider: "auto", "cpu", "cuda" or "tensorrt". engine, precision: see `choice.open_network`.
    cache_dir: folder for compiled networks; None keeps none. devices: indexes of the GPUs; empty
    for all that are visible. gpu_mem_limit_bytes: of each GPU, for one model. instances,
    intra_op_threads, alone_threads: see `cores.plan`. warm_up_sizes: (height, width) that run
    before the first request, as far as the model takes them, besides an ordinary one.
    pool_workers: threads that decode and encode; None for as many as cores. decode: in
    "threads", or in "processes" that a hostile file can end without harm: the server's choice.
    hooks: see `service.hooks.load_hooks`.

    max_inflight: requests between admission and reply; max_inflight_bytes, max_inflight_pixels: of
    their uploads; pixels None: as the memory allows. One request always fits. max_queue: images
    admitted and waiting for one model. max_wait_s: longest predicted wait for the device at which
    a request is taken. max_batch: images in one inference; None for 8 on a GPU and 1 elsewhere.
    max_batch_pixels bounds a batch's memory: N * H * W; one image always fits. max_whole_pixels: a
    larger image is run in tiles; None: as the memory allows. stuck_after_s: a run may always take
    so long before the watchdog ends it.
    """

    model_repository: Path = Path("model_repository")
    model_poll_s: float = 0.0
    default_model: str | None = None

    provider: str = "auto"
    provider_options: ProviderOptions = field(default_factory=dict)
    engine: str = "auto"
    precision: str = "auto"
    cache_dir: Path | None = None
    devices: tuple[int, ...] = ()
    gpu_mem_limit_bytes: int | None = None
    instances: int | None = None
    intra_op_threads: int | None = None
    alone_threads: int | None = None
    warm_up_sizes: tuple[tuple[int, int], ...] = ()
    pool_workers: int | None = None
    decode: str = "threads"
    hooks: str = ""

    max_image_bytes: int = 32 * 1024 * 1024
    max_image_pixels: int = 40_000_000
    max_inflight: int = 64
    max_inflight_bytes: int = 256 * 1024 * 1024
    max_inflight_pixels: int | None = None
    max_queue: int = 64
    max_wait_s: float = 5.0
    max_batch: int | None = None
    max_batch_pixels: int = 8 * 1024 * 1024
    max_whole_pixels: int | None = None
    stuck_after_s: float = 10.0


@dataclass(frozen=True)
class ApiConfig:
    """Says what REST, gRPC and the Open Inference Protocol are to hold to.

    root_path: prefix that a proxy offers REST under, "" for none. cors_origins: whose pages may
    ask from a browser; "*" for all. admin_port: the only one on which
    the model repository is administered; None for all.
    deadline_s: time allowed to a request that brings no deadline of its own. latency_target_s: time
    a request should take; latency_target_pixels: larger images are not held to it. stream_window:
    images of one gRPC stream that are read and not answered.
    grpc_compression: "none" or "gzip". max_uploads, max_uploads_bytes: being read at once.
    limits: of each caller, as `service.api.limits` reads them.
    drain_delay_s: seconds between turning unready and refusing connections. drain_s: seconds that
    requests in flight get to finish.
    """

    default_model: str | None = None
    max_image_bytes: int = SegmenterConfig.max_image_bytes
    max_image_pixels: int = SegmenterConfig.max_image_pixels
    max_uploads: int = 256
    max_uploads_bytes: int = 256 * 1024 * 1024
    upload_timeout_s: float = 30.0
    limits: str = ""
    deadline_s: float = 30.0
    latency_target_s: float = 0.175
    latency_target_pixels: int = 500 * 500
    stream_window: int = 16
    grpc_compression: str = "none"
    root_path: str = ""
    cors_origins: tuple[str, ...] = ()
    admin_port: int | None = None
    drain_delay_s: float = 0.0
    drain_s: float = 30.0

    @property
    def max_tensor_bytes(self) -> int:
        """Returns the size of a message in which the largest image fits, encoded or as pixels."""
        return max(self.max_image_bytes, 3 * self.max_image_pixels) + _TENSOR_OVERHEAD_BYTES
