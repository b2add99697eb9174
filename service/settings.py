"""Every setting of the server, once: `FCN_*` environment variables, or flags of the same name.

Flags win over the environment, the environment over the settings file, that over the defaults.
Only `service.app` and the command line read this; other modules get values. docs/settings.md lists
the same; a test compares.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, Self

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.core.engines.gpus import INSTANCES, MAX_BATCH, GpuOptions

PREFIX = "FCN_"
MIN_ADMIN_KEY = 16
"""Characters. A shorter one could be guessed."""


class SettingsError(ValueError):
    """A setting is unknown or out of range; the message names it and says what to do."""


class Settings(BaseSettings):
    """Values in force for one server process."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        use_attribute_docstrings=True,
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        validate_default=False,
    )

    settings_file: Path | None = None
    """File of settings, a line `FCN_NAME=value` each, as `fcn tune` writes it. The environment and
    flags win over it."""
    host: str = "127.0.0.1"
    """Address both ports listen on. The default is reachable from this machine only; the container
    image sets 0.0.0.0."""
    http_port: int = Field(8000, ge=0, le=65535)
    """Port of REST, metrics and probes; 0 picks a free one."""
    grpc_port: int = Field(8001, ge=0, le=65535)
    """Port of gRPC; 0 picks a free one."""

    model_repository: Path = Path("model_repository")
    """Folder of models, `<name>/<version>/model.onnx`."""
    model_poll_s: float = Field(0.0, ge=0)
    """Seconds between looks for new, changed and removed models, which are then loaded, replaced
    and unloaded; 0 looks at the start only."""
    default_model: str | None = None
    """Model that answers requests that name none. Needed only with more than one model."""
    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = "auto"
    """Where the network runs; `auto` takes CUDA when it works, else the CPU. The others do not
    start where they cannot have what they are named after."""
    devices: str = Field("", pattern=r"^(\d+(,\d+)*)?$")
    """GPUs to use, by number among those this process sees, separated by commas; by default all of
    them. Each has the model, and all serve one queue."""
    gpu_mem_limit_bytes: int | None = Field(None, ge=1)
    """Memory of each GPU that one model's tensors may take; by default all of it."""
    tf32: bool = True
    """Whether GPUs may round the factors of float32 products to 10 bits, which is several times as
    fast."""
    cuda_graphs: bool = False
    """Whether the runs of warmed-up shapes are replayed as CUDA graphs; not with TensorRT."""
    tensorrt_cache: Path | None = None
    """Folder where TensorRT's engines and timings are kept; without one they are built at every
    start."""
    engine: Literal["onnxruntime", "openvino", "auto"] = "onnxruntime"
    """What runs the network on the CPU. OpenVINO serves only where its labels are those of ONNX
    Runtime; `auto` takes the faster of the two at every start."""
    precision: Literal["auto", "fp32", "fp16", "int8"] = "auto"
    """Which file of a model is served: `fp32` is `model.onnx`, `fp16` and `int8` the
    `model.fp16.onnx` and `model.int8.onnx` beside it; `auto` takes fp16 on a GPU, and int8 on a CPU
    with instructions for it (VNNI, AMX, Arm's dot product), where there is such a file."""
    instances: int | None = Field(None, ge=1)
    """Inferences at once: on the CPU by default one per core, 8 at most; on each GPU 2, each with a
    copy of the model."""
    intra_op_threads: int | None = Field(None, ge=1)
    """Threads of each inference on the CPU; by default the cores divided by the instances."""
    alone_threads: int | None = Field(None, ge=1)
    """Threads of an inference that has the idle CPU to itself; by default all cores. More than
    those of the others costs a second copy of the model; 1 saves it."""
    warm_up_sizes: str = Field("", pattern=r"^(\d+x\d+(,\d+x\d+)*)?$")
    """Sizes of pictures, `heightxwidth` separated by commas, that every model runs before it is
    ready, besides an ordinary one; on a GPU in batches, too. TensorRT builds for those from the
    smallest to the largest, and the first is the usual one."""
    pool_workers: int | None = Field(None, ge=1)
    """Threads that decode and render; by default chosen from the cores."""

    max_image_bytes: int = Field(32 * 1024 * 1024, ge=1)
    """Largest upload, in bytes; a longer body is cut off while it streams in."""
    max_image_pixels: int = Field(40_000_000, ge=1)
    """Largest picture, height times width, checked before it is decoded."""
    max_inflight: int = Field(64, ge=1)
    """Requests between admission and answer; one more is answered 429."""
    max_inflight_bytes: int = Field(256 * 1024 * 1024, ge=1)
    """Bytes of the uploads between admission and answer; above, 429. One upload always fits."""
    max_inflight_pixels: int | None = Field(None, ge=1)
    """Pixels of the pictures between admission and answer; above, 429. One picture always fits. By
    default chosen from the memory this process may use, 160 million at most."""
    max_queue: int = Field(64, ge=1)
    """Pictures that wait for one model; one more is answered 429."""
    max_wait_ms: int = Field(5000, ge=1)
    """Longest wait for the device, predicted from the measured pace, at which a request is taken;
    above, 429. The deadline of a request may ask for less. An idle device takes whatever comes."""
    max_uploads: int = Field(256, ge=1)
    """Uploads being read at once; one more is answered 429 unread."""
    max_uploads_bytes: int = Field(256 * 1024 * 1024, ge=1)
    """Bytes of the uploads being read; above, 429. One upload always fits."""
    upload_timeout_s: float = Field(30.0, gt=0)
    """Seconds an upload may take; then it is answered 408."""
    stream_window: int = Field(16, ge=1)
    """Pictures of one gRPC stream that are read and not answered yet; the rest waits in the
    transport. A stream may ask for fewer."""
    max_batch: int | None = Field(None, ge=1)
    """Pictures of equal size that share one inference; by default 1 on the CPU, where sharing saves
    nothing and delays the first, and 8 on a GPU."""
    max_batch_pixels: int = Field(8 * 1024 * 1024, ge=1)
    """Pixels in one inference, over all its pictures; a single picture always fits."""
    max_padding: float = Field(0.125, ge=0, lt=1)
    """Share of those pixels that may be padding, where pictures of several sizes share an
    inference: only with models made by `fcn ragged`, and where `FCN_MAX_BATCH` is above 1. 0 for
    batches of one size."""
    max_whole_pixels: int | None = Field(None, ge=1)
    """Largest picture that is run in one piece, height times width; a larger one is run in
    overlapping parts, with the same labels. By default chosen from the memory this process may
    use."""
    deadline_ms: int = Field(30_000, ge=1)
    """Time allowed to a request that brings no deadline of its own, in milliseconds."""
    latency_target_s: float = Field(0.175, gt=0)
    """Time a request should take, in seconds: exported as a metric and as a histogram edge."""

    grpc_compression: Literal["none", "gzip"] = "none"
    """How gRPC answers are compressed; every caller must then be able to read it. PNG hardly
    shrinks; worth it for JSON over a slow network. Compressed requests are read either way."""

    drain_delay_s: float = Field(0.0, ge=0)
    """Seconds between turning unready and refusing connections at SIGTERM, so that load balancers
    notice."""
    drain_s: float = Field(30.0, ge=0)
    """Seconds that requests in flight get to finish at SIGTERM."""

    api_keys_file: Path | None = None
    """File of the API keys, a line `NAME KEY` for each caller, read again when it changes. Without
    one, everybody is let in."""
    admin_key: SecretStr | None = None
    """Key of whoever may list, load and unload models while the server runs. Without one, nobody
    may."""
    admin_key_file: Path | None = None
    """File that holds the admin key, in place of `FCN_ADMIN_KEY`."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is logged; one line per request at `info`, probes at `debug`."""
    log_format: Literal["text", "json"] = "text"
    """Shape of the log lines on stderr."""

    @model_validator(mode="after")
    def _two_ports(self) -> Self:
        if self.http_port == self.grpc_port != 0:
            raise ValueError(f"FCN_HTTP_PORT and FCN_GRPC_PORT are both {self.http_port}")
        return self

    @model_validator(mode="after")
    def _one_admin_key(self) -> Self:
        if self.admin_key is not None and self.admin_key_file is not None:
            raise ValueError("FCN_ADMIN_KEY and FCN_ADMIN_KEY_FILE are both set: set one")
        if (key := self.read_admin_key()) is not None and len(key) < MIN_ADMIN_KEY:
            raise ValueError(
                f"the admin key has {len(key)} characters: give it {MIN_ADMIN_KEY} or more"
            )
        return self

    @model_validator(mode="after")
    def _graphs_of_cuda(self) -> Self:
        if self.cuda_graphs and self.provider == "tensorrt":
            raise ValueError(
                "FCN_CUDA_GRAPHS goes with FCN_PROVIDER=cuda, not with tensorrt: unset one of them"
            )
        return self

    def gpu_options(self) -> GpuOptions:
        return GpuOptions(
            devices=tuple(int(index) for index in self.devices.split(",") if index),
            instances=self.instances or INSTANCES,
            memory_limit_bytes=self.gpu_mem_limit_bytes,
            tf32=self.tf32,
            graphs=self.cuda_graphs,
            tensorrt_cache=self.tensorrt_cache,
            sizes=parse_sizes(self.warm_up_sizes),
            max_batch=self.max_batch or MAX_BATCH,
        )

    def read_admin_key(self) -> str | None:
        """Out of its file, if it is in one. Raises: ValueError when that cannot be read."""
        if self.admin_key_file is None:
            return None if self.admin_key is None else self.admin_key.get_secret_value()
        try:
            return self.admin_key_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise ValueError(
                f"FCN_ADMIN_KEY_FILE {str(self.admin_key_file)!r} cannot be read: {reason}"
            ) from error


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """`360x480,480x640` -> (height, width) of each."""
    sizes = [item.split("x") for item in text.split(",") if item]
    return tuple((int(height), int(width)) for height, width in sizes)


def environment_name(field: str) -> str:
    """`http_port` -> `FCN_HTTP_PORT`."""
    return PREFIX + field.upper()


def unknown_names(names: Iterable[str]) -> list[str]:
    """One sentence for each name that starts with FCN_ and is no setting."""
    known = [environment_name(field) for field in Settings.model_fields]
    sentences = []
    for name in sorted(names):
        if not name.upper().startswith(PREFIX) or name.upper() in known:
            continue
        near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.0)
        sentences.append(f"{name} is not a setting; the closest is {near[0]}")
    return sentences


def load_settings(flags: Mapping[str, object] | None = None) -> Settings:
    """From `flags` (field name -> value, given ones only) over the environment over the settings
    file over the defaults.

    Raises: SettingsError, in one line.
    """
    flags = flags or {}
    if unknown := unknown_names(os.environ):
        raise SettingsError("; ".join(unknown))
    file = flags.get("settings_file") or os.environ.get(environment_name("settings_file"))
    if file:
        _check_file(Path(str(file)))
    try:
        return Settings(_env_file=str(file) if file else None, **flags)  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        raise SettingsError("; ".join(_sentence(dict(e)) for e in error.errors())) from error


def _check_file(path: Path) -> None:
    """Raises: SettingsError unless `path` can be read and holds settings, and nothing else."""
    try:
        names = dotenv_values(path)
        path.read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise SettingsError(
            f"the settings file {path} cannot be read: {reason}: write one with fcn tune, or unset "
            "FCN_SETTINGS_FILE"
        ) from error
    wrong = unknown_names(names)
    wrong += [f"{name} is not a setting" for name in names if not name.upper().startswith(PREFIX)]
    if environment_name("settings_file") in (name.upper() for name in names):
        wrong.append("a settings file names no other: leave FCN_SETTINGS_FILE out")
    if wrong:
        raise SettingsError(f"the settings file {path}: {'; '.join(wrong)}")


def _sentence(error: dict[str, object]) -> str:
    """One pydantic error, e.g. "FCN_HTTP_PORT='x': Input should be a valid integer"."""
    message = str(error["msg"]).removeprefix("Value error, ")
    location = error["loc"]
    if not isinstance(location, tuple) or not location:
        return message
    # Out of the environment pydantic-settings reports the variable's name, else the field's.
    name = str(location[0]).upper()
    name = name if name.startswith(PREFIX) else PREFIX + name
    return f"{name}={str(error['input'])!r}: {message}"
