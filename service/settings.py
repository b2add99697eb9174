"""Defines every setting of the server: `FCN_*` environment variables, or flags of the same name.

Flags win over the environment, the environment over the settings file, that over the defaults.
Only `service.app`, what Ray runs in its place, `service.local` and the command line read this;
other modules get the configs that it makes. docs/settings.md lists the same; a test compares.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, Self

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from service.api.limits import Limits
from service.config import ApiConfig, SegmenterConfig
from service.service_links import without_links
from service.setting_values import (
    IN_PLACE_OF,
    checked,
    parse_origins,
    parse_provider_options,
    parse_root_path,
    parse_sizes,
)
from service.tls import CERT, CLIENT_CA, KEY, Files

_log = logging.getLogger("fcn.settings")
PREFIX = "FCN_"
MIN_ADMIN_KEY = 16
"""Characters. A shorter one could be guessed."""


class SettingsError(ValueError):
    """Names the setting that is unknown or out of range, and says what to do."""


class Settings(BaseSettings):
    """Holds the values in force for one server process."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        env_file_encoding="utf-8-sig",  # editors on Windows begin a file with a mark
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
    """Address both ports listen on; of a name, every address it has. The default is reachable from
    this machine only; the container image sets 0.0.0.0, which is every address, as `::` is."""
    http_port: int = Field(8000, ge=0, le=65535)
    """Port of REST, metrics and probes; 0 picks a free one."""
    grpc_port: int = Field(8001, ge=0, le=65535)
    """Port of gRPC; 0 picks a free one."""
    admin_port: int | None = Field(ApiConfig.admin_port, ge=0, le=65535)
    """Port of 127.0.0.1 on which alone the model repository is administered, over REST; by default
    that is done on the other ports, too. 0 picks a free one."""

    model_repository: Path = SegmenterConfig.model_repository
    """Folder of models, `<name>/<version>/model.onnx`."""
    model_poll_s: float = Field(SegmenterConfig.model_poll_s, ge=0)
    """Seconds between looks for new, changed and removed models, which are then loaded, replaced
    and unloaded; 0 looks at the start only."""
    default_model: str | None = SegmenterConfig.default_model
    """Model that answers requests that name none: by default the one that `aliases.toml` calls
    `default`, or the only one."""
    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = "auto"
    """Provider that runs the network; `auto` takes CUDA when it works, else the CPU. The others do
    not start where they cannot have what they are named after."""
    devices: str = Field("", pattern=r"^([0-9]{1,3}(,[0-9]{1,3})*)?$")
    """GPUs to use, by number among those this process sees, separated by commas; by default all of
    them. Each has the model, and all serve one queue."""
    gpu_mem_limit_bytes: int | None = Field(SegmenterConfig.gpu_mem_limit_bytes, ge=1)
    """Memory of each GPU that one model's tensors may take; by default all of it."""
    provider_options: str = ""
    """Options of ONNX Runtime's GPU providers, as JSON over the service's own:
    `{"cuda": {"use_tf32": 0}, "tensorrt": {"trt_engine_cache_enable": 1}}`."""
    engine: Literal["auto", "onnxruntime", "openvino"] = "auto"
    """Engine of the network on the CPU: `auto` takes the one that is faster on processors like this
    one; `fcn tune` measures. OpenVINO serves only where its labels are those of ONNX Runtime."""
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8"] = "auto"
    """Precision of the network: `fp32` is `model.onnx`, `fp16` and `int8` the `model.fp16.onnx` and
    `model.int8.onnx` beside it, `bf16` is `model.onnx` rounded by OpenVINO on a CPU made for that
    (AMX, AVX512_BF16). `auto` takes fp16 on a GPU; on a CPU int8 where it has instructions for it
    (VNNI, AMX, Arm's dot product) and there is such a file, else bf16 where that is faster."""
    cache_dir: Path | None = None
    """Folder for networks that OpenVINO compiled, 512 MiB at most, so that the next start need not
    compile them; by default none are kept."""
    instances: int | None = Field(SegmenterConfig.instances, ge=1)
    """Inferences at once: on the CPU by default one per core, 8 at most; on each GPU 2, each with a
    copy of the model."""
    intra_op_threads: int | None = Field(SegmenterConfig.intra_op_threads, ge=1)
    """Threads of each inference on the CPU; by default the cores divided by the instances."""
    alone_threads: int | None = Field(SegmenterConfig.alone_threads, ge=1)
    """Threads of an inference that has the idle CPU to itself; by default all cores. More than
    those of the others costs a second copy of the model; 1 saves it."""
    warm_up_sizes: str = Field("", pattern=r"^([0-9]{1,6}x[0-9]{1,6}(,[0-9]{1,6}x[0-9]{1,6})*)?$")
    """Sizes of images, `heightxwidth` separated by commas, that every model runs before it is
    ready, besides an ordinary one; on a GPU in batches, too. TensorRT builds its engines then."""
    pool_workers: int | None = Field(SegmenterConfig.pool_workers, ge=1)
    """Threads that decode and render; by default chosen from the cores."""
    decode: Literal["processes", "threads"] = "processes"
    """Where images are decoded: in confined processes (Linux), where a hostile file costs its own
    request, or in threads, where it may end the server."""

    hooks: str = Field(SegmenterConfig.hooks, pattern=r"^([\w.-]+(,[\w.-]+)*)?$")
    """Code of one's own that runs before and after the network: names of entry points of the group
    `fcn.hooks`, separated by commas, in the order in which they run."""

    max_image_bytes: int = Field(SegmenterConfig.max_image_bytes, ge=1)
    """Largest upload, in bytes; a longer body is cut off while it streams in."""
    max_image_pixels: int = Field(SegmenterConfig.max_image_pixels, ge=1)
    """Largest image, height times width, checked before it is decoded."""
    max_inflight: int = Field(SegmenterConfig.max_inflight, ge=1)
    """Requests between admission and answer; one more is answered 429."""
    max_inflight_bytes: int = Field(SegmenterConfig.max_inflight_bytes, ge=1)
    """Bytes of the uploads between admission and answer; above, 429. One upload always fits."""
    max_inflight_pixels: int | None = Field(SegmenterConfig.max_inflight_pixels, ge=1)
    """Pixels of the images between admission and answer, more of those not yet decoded; above, 429.
    One image always fits. By default chosen from the memory, 250 million at most."""
    max_queue: int = Field(SegmenterConfig.max_queue, ge=1)
    """Images that wait for one model; one more is answered 429."""
    max_wait_ms: int = Field(round(1000 * SegmenterConfig.max_wait_s), ge=1)
    """Longest wait for the device, predicted from the measured latency, at which a request is
    taken; above, 429. The deadline of a request may ask for less. An idle device takes whatever
    comes."""
    max_uploads: int = Field(ApiConfig.max_uploads, ge=1)
    """Uploads being read at once; one more is answered 429 unread."""
    max_uploads_bytes: int = Field(ApiConfig.max_uploads_bytes, ge=1)
    """Bytes of the uploads being read; above, 429. One upload always fits."""
    upload_timeout_s: float = Field(ApiConfig.upload_timeout_s, gt=0)
    """Seconds an upload may take; then it is answered 408."""
    stream_window: int = Field(ApiConfig.stream_window, ge=1)
    """Images of one gRPC stream that are read and not answered yet; the rest waits in the
    transport. A stream may ask for fewer."""
    max_batch: int | None = Field(SegmenterConfig.max_batch, ge=1)
    """Images of equal size that share one inference; by default 1 on the CPU, where sharing saves
    nothing and delays the first, and 8 on a GPU."""
    max_batch_pixels: int = Field(SegmenterConfig.max_batch_pixels, ge=1)
    """Pixels in one inference, over all its images; a single image always fits."""
    max_whole_pixels: int | None = Field(SegmenterConfig.max_whole_pixels, ge=1)
    """Largest image that is run in one piece, height times width; a larger one is run in
    overlapping tiles, with the same labels. By default chosen from the memory."""
    stuck_after_s: float = Field(SegmenterConfig.stuck_after_s, ge=1)
    """Seconds that a run of the network may always take. One that takes longer, and 20 times longer
    than was predicted, is ended, and its images are answered 503. TensorRT, which builds engines,
    gets 60 times as long."""
    deadline_ms: int = Field(round(1000 * ApiConfig.deadline_s), ge=1)
    """Time allowed to a request that brings no deadline of its own, in milliseconds."""
    latency_target_s: float = Field(ApiConfig.latency_target_s, gt=0)
    """Time a request should take, in seconds: exported as a metric and as a histogram edge."""
    latency_target_pixels: int = Field(ApiConfig.latency_target_pixels, ge=1)
    """Largest image, height times width, that is held to the latency target by the objectives that
    the alerts watch. By default 500 times 500, the paper's typical image; larger ones are measured
    all the same."""

    grpc_compression: Literal["none", "gzip"] = "none"
    """How gRPC answers are compressed; every caller must then be able to read it. PNG hardly
    shrinks; worth it for JSON over a slow network. Compressed requests are read either way."""

    root_path: str = ApiConfig.root_path
    """Prefix, such as `/fcn`, under which a proxy offers REST and does not take it off; addresses
    without it are answered all the same. A proxy that takes it off needs nothing set here."""
    cors_origins: str = ""
    """Origins whose pages may ask this server from a browser (CORS), separated by commas:
    `https://app.example.com,http://localhost:5173`; `*` for all. By default its own page alone."""

    drain_delay_s: float = Field(ApiConfig.drain_delay_s, ge=0)
    """Seconds between turning unready and refusing connections at SIGTERM, so that load balancers
    notice."""
    drain_s: float = Field(ApiConfig.drain_s, ge=0)
    """Seconds that requests in flight get to finish at SIGTERM."""

    api_keys_file: Path | None = None
    """File of the API keys, a line `NAME KEY` for each caller, as `fcn keys` writes it; read again
    when it changes. Without one, everybody is let in."""
    limits: str = ApiConfig.limits
    """Limits of each caller whose key has none of its own in the file, or, where no key is asked
    for, of each address: `requests_s=10 megapixels_s=50 in_flight=4`, any of them. By default there
    are none."""
    admin_key: SecretStr | None = None
    """Key of whoever may list, load and unload models while the server runs, besides the keys with
    the role `admin`. Without either, nobody may."""
    admin_key_file: Path | None = None
    """File that holds the admin key, in place of `FCN_ADMIN_KEY`."""

    tls_cert: Path | None = None
    """PEM file of the server's certificate and those between it and its authority: REST is then
    https, and gRPC has TLS, too. Read again when it changes."""
    tls_key: Path | None = None
    """PEM file of the certificate's private key, without a password."""
    tls_client_ca: Path | None = None
    """PEM file of the authorities that sign certificates of callers (mTLS), who then need one.
    `/livez` and `/readyz` alone are answered without."""

    tracing: Literal["off", "otlp"] = "off"
    """Where spans of requests go: `otlp` exports them by OpenTelemetry, as its own variables say
    (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER`, ...), and takes the extra `otel`, which
    the images have."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is logged; one line per request at `info`, probes at `debug`."""
    log_format: Literal["text", "json"] = "text"
    """Shape of the log lines on stderr."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        for source in (env_settings, dotenv_settings):
            if isinstance(source, EnvSettingsSource):
                source.env_vars = without_links(source.env_vars)
        return init_settings, env_settings, dotenv_settings

    _is_a_path = field_validator("root_path")(parse_root_path)
    _are_origins = field_validator("cors_origins")(checked(parse_origins))
    _are_limits = field_validator("limits")(checked(lambda text: Limits.of(text.split())))

    @model_validator(mode="after")
    def _ports_of_their_own(self) -> Self:
        for one, other in combinations(("http_port", "grpc_port", "admin_port"), 2):
            if getattr(self, one) == (port := getattr(self, other)) and port:
                names = f"{environment_name(one)} and {environment_name(other)}"
                raise ValueError(f"{names} are both {port}")
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
    def _whole_tls(self) -> Self:
        if (self.tls_cert is None) is not (self.tls_key is None):
            raise ValueError(f"{CERT} and {KEY} belong together: set both, or none for no TLS")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError(f"{CLIENT_CA} needs a server with TLS: set {CERT} and {KEY}, too")
        return self

    @model_validator(mode="after")
    def _readable_provider_options(self) -> Self:
        parse_provider_options(self.provider_options)
        return self

    def segmenter_config(self) -> SegmenterConfig:
        return SegmenterConfig(
            **self._values_of(SegmenterConfig)
            | {
                "provider_options": parse_provider_options(self.provider_options),
                "devices": tuple(int(index) for index in self.devices.split(",") if index),
                "warm_up_sizes": parse_sizes(self.warm_up_sizes),
                "max_wait_s": self.max_wait_ms / 1000,
            }
        )

    def api_config(self) -> ApiConfig:
        origins = parse_origins(self.cors_origins)
        found = {"deadline_s": self.deadline_ms / 1000, "cors_origins": origins}
        return ApiConfig(**self._values_of(ApiConfig) | found)

    def tls_files(self) -> Files | None:
        """Returns None without TLS."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return Files(self.tls_cert, self.tls_key, self.tls_client_ca)

    def _values_of(self, config: type[SegmenterConfig | ApiConfig]) -> dict[str, Any]:
        """Returns the settings that have the name of a field of `config`."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(config)
            if field.name in Settings.model_fields
        }

    def read_admin_key(self) -> str | None:
        """Reads the key, if it is in a file. Raises: ValueError when that cannot be read."""
        if self.admin_key_file is None:
            return None if self.admin_key is None else self.admin_key.get_secret_value()
        try:
            return self.admin_key_file.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ValueError(
                f"FCN_ADMIN_KEY_FILE {str(self.admin_key_file)!r} cannot be read: {reason}"
            ) from error


def removed_names() -> tuple[str, ...]:
    """Names the settings of earlier versions."""
    return tuple(IN_PLACE_OF)


def environment_name(field: str) -> str:
    """Names the variable: `http_port` -> `FCN_HTTP_PORT`."""
    return PREFIX + field.upper()


def unknown_names(names: Iterable[str]) -> list[str]:
    """Writes a sentence for each name that starts with FCN_ and is no setting."""
    known = [environment_name(field) for field in Settings.model_fields]
    sentences = []
    for name in sorted(names):
        if not name.upper().startswith(PREFIX) or name.upper() in known:
            continue
        if instead := IN_PLACE_OF.get(name.upper()):
            sentences.append(f"{name} is no setting any more: {instead}")
            continue
        near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.0)
        sentences.append(f"{name} is not a setting; the closest is {near[0]}")
    return sentences


def load_settings(flags: Mapping[str, object] | None = None) -> Settings:
    """Takes `flags` (field name -> value, given ones only) over the environment over the settings
    file over the defaults.

    Raises: SettingsError, in one line.
    """
    flags = flags or {}
    ours = without_links(os.environ)
    if unknown := unknown_names(ours):
        raise SettingsError("; ".join(unknown))
    for name in os.environ.keys() - ours.keys():
        if name.upper().removeprefix(PREFIX).lower() in Settings.model_fields:
            _log.warning("%s is the address of another service here, and sets nothing", name)
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
        names = without_links(dotenv_values(path, encoding="utf-8-sig"))
        path.read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
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
    """Puts a pydantic error into words: "FCN_HTTP_PORT='x': Input should be a valid integer"."""
    message = str(error["msg"]).removeprefix("Value error, ")
    location = error["loc"]
    if not isinstance(location, tuple) or not location:
        return message
    # Out of the environment pydantic-settings reports the variable's name, else the field's.
    name = str(location[0]).upper()
    name = name if name.startswith(PREFIX) else PREFIX + name
    return f"{name}={str(error['input'])!r}: {message}"
