"""Tries all that a start needs, one finding each, and serves nothing: `fcn serve --check`."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from service.api.keys import ADMIN, Keys
from service.app import LOOPBACK
from service.config import SegmenterConfig
from service.core.engines.choice import open_network
from service.core.engines.cores import available_cores
from service.core.models.loader import Loader
from service.core.models.model_settings import read_aliases, read_settings
from service.core.models.registry import ModelRegistry
from service.core.models.repository import ModelFolder, digest_of, require
from service.core.types import Observer
from service.errors import ServiceError, StartError
from service.hooks import load_hooks
from service.listening import joined, listen
from service.setting_values import otlp_protocol
from service.settings import Settings, environment_name
from service.telemetry import Telemetry
from service.tls import Certificates, Files
from service.tracing import Tracing

_PROMTOOL_S = 30.0


@dataclass(frozen=True, slots=True)
class Finding:
    """Says of one thing whether a server would start with it, and what it is or why not."""

    what: str
    ok: bool
    text: str


def check(settings: Settings, rules: Path | None = None) -> Iterator[Finding]:
    """Looks at everything, also after a fault; each model is loaded and runs once.

    rules: a file of Prometheus rules, if it is to be looked at, too.
    """
    given = sorted(environment_name(name) for name in settings.model_fields_set)
    yield Finding("settings", True, ", ".join(given) or "all by default")
    yield _tried("keys", partial(_keys, settings))
    yield _tried("certificate", partial(_certificate, settings.tls_files()))
    if settings.tracing == "otlp":
        yield _tried("tracing", _tracing)
    for name in (
        "http_port",
        "grpc_port",
        *(() if settings.admin_port is None else ("admin_port",)),
    ):
        yield _tried(name.replace("_", " "), partial(_port, settings, name))
    if settings.hooks:
        yield _tried("hooks", partial(_hooks, settings))
    yield from _models(settings.segmenter_config())
    if rules is not None:
        yield _tried("rules", partial(_rules, rules, settings))


def _tried(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, look())
    except (ServiceError, StartError, OSError, UnicodeDecodeError) as error:
        return Finding(what, False, " ".join(str(error).split()))


def _keys(settings: Settings) -> str:
    """Raises: StartError."""
    keys = Keys(
        settings.api_keys_file, admin_key=settings.read_admin_key(), rejected=lambda why: None
    )
    admins = sum(ADMIN in caller.roles for caller in keys.callers)
    admins += settings.read_admin_key() is not None
    who = f"{len(keys.callers)} keys" if keys.required else "everybody is let in"
    return f"{who}; {admins or 'none'} may change what is served"


def _certificate(files: Files | None) -> str:
    """Raises: StartError."""
    if files is None:
        return "no TLS"
    found = Certificates(files).current
    until = datetime.fromtimestamp(found.expires_s, UTC)
    if found.expires_s < time.time():
        raise StartError(f"the TLS certificate {files.cert} expired on {until:%Y-%m-%d}: renew it")
    return f"valid until {until:%Y-%m-%d}"


def _tracing() -> str:
    """Raises: StartError."""
    Tracing(otlp_protocol()).close()
    return f"spans by OTLP over {otlp_protocol()}; whether somebody takes them was not tried"


def _hooks(settings: Settings) -> str:
    """Raises: StartError."""
    load_hooks(settings.hooks)
    return f"{settings.hooks.replace(',', ', ')} can be made"


def _port(settings: Settings, name: str) -> str:
    """Raises: StartError."""
    port: int = getattr(settings, name)
    host = LOOPBACK if name == "admin_port" else settings.host
    for listener in listen(host, port, environment_name(name)):
        listener.close()
    return f"{joined(host, port)} is free" if port else "any that is free"


def _models(config: SegmenterConfig) -> Iterator[Finding]:
    registry, observer = ModelRegistry(config.default_model), Observer()
    opened = partial(open_network, config, available_cores(), observer)
    loader = Loader(config, open_network=opened, observer=observer, clock=time.monotonic)
    try:
        folders, _, _ = require(config.model_repository)
        registry.set_aliases(read_aliases(config.model_repository))
    except ServiceError as error:
        yield Finding("models", False, str(error))
        return
    whole = True
    for folder in folders.values():
        for finding in _versions(folder, loader, registry):
            whole = whole and finding.ok
            yield finding
    if whole:  # else what is missing was said
        yield _tried("names", partial(_names, registry, config.model_repository))


def _versions(folder: ModelFolder, loader: Loader, registry: ModelRegistry) -> Iterator[Finding]:
    try:
        settings = read_settings(folder.path)
    except ServiceError as error:
        yield Finding(f"model {folder.name}", False, str(error))
        return
    served = 0
    for version in settings.candidates(file.version for file in folder.files):
        if served == settings.latest:
            return
        what, began_s = f"model {folder.name}/{version}", time.monotonic()
        try:
            model = loader.load(folder.file(version), settings)
        except Exception as error:  # a runtime's, whose classes have nothing in common
            yield Finding(what, False, " ".join(str(error).split()) or type(error).__name__)
            continue
        registry.add(model)
        served += 1
        network = model.network
        yield Finding(
            what,
            True,
            f"{network.provider} ({network.engine}, {network.precision}), "
            f"{len(model.contract.classes)} classes, {network.path.name} "
            f"sha256:{digest_of(network.path)[:16]}, ready in {time.monotonic() - began_s:.1f} s",
        )


def _names(registry: ModelRegistry, repository: Path) -> str:
    """Raises: ModelLoadError."""
    registry.check_names(repository)
    default = registry.default_name()
    return f"{default} is the default" if default else "there is no default: requests must name one"


def _rules(path: Path, settings: Settings) -> str:
    """Raises: StartError, OSError."""
    text = path.read_text(encoding="utf-8")
    scraped = Telemetry(settings.latency_target_s).scrape().decode()
    known = set(re.findall(r"^# TYPE (\w+)", scraped, re.M))
    known |= set(re.findall(r"^\s*(?:- )?record:\s*(\S+)", text, re.M))
    used = re.findall(r"\bfcn_\w+(?![\w:])", text)
    wrong = {name for name in used if not {name, re.sub(r"_(bucket|sum|count)$", "", name)} & known}
    if wrong:
        raise StartError(f"{path} asks for {', '.join(sorted(wrong))}, which no server has")
    promtool = shutil.which("promtool")
    if promtool is None:
        return f"{len(set(used))} metrics of it are served; install promtool to check its syntax"
    done = subprocess.run(  # nosec B603  # the operator's own file
        [promtool, "check", "rules", str(path)],
        capture_output=True,
        text=True,
        timeout=_PROMTOOL_S,
    )
    if done.returncode:
        raise StartError(f"promtool: {done.stderr or done.stdout}")
    return f"{len(set(used))} metrics of it are served; promtool finds no fault"
