"""One real server for the whole folder, with limits small enough to reach."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.authority import Authority
from tests.serving import Server, running
from tests.tiny_models import write_model

MAX_IMAGE_BYTES = 100_000
MAX_IMAGE_PIXELS = 1_000_000


def models(repository: Path) -> Path:
    """Write `tiny` (versions 1, with logits, and 2, which favours green) and `other`."""
    write_model(repository, "tiny", 1, logits=True)
    write_model(repository, "tiny", 2, bias=(0, 300, 0))
    write_model(repository, "other", 1, bias=(0, 0, 300))
    (repository / "tiny" / "model.toml").write_text('description = "Drawn streets"\n')
    return repository


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(
        models(tmp_path_factory.mktemp("models")),
        default_model="tiny",
        max_image_bytes=MAX_IMAGE_BYTES,
        max_image_pixels=MAX_IMAGE_PIXELS,
    ) as server:
        yield server


ADMIN_KEY = "an operator's key for tests"
MAX_PIXELS = 40_000


@pytest.fixture(scope="session")
def oip_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Runs another, with an admin key, `first` for version 1, and a queue of six images."""
    repository = models(tmp_path_factory.mktemp("oip"))
    (repository / "aliases.toml").write_text('first = "tiny/1"\n')
    with running(
        repository,
        default_model="tiny",
        admin_key=ADMIN_KEY,
        max_image_bytes=MAX_IMAGE_BYTES,
        max_image_pixels=MAX_PIXELS,
        max_queue=6,
    ) as server:
        yield server


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def one_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def mutual(one_model: Path, authority: Authority) -> Iterator[Server]:
    """Runs a server with TLS that asks for client certificates."""
    cert, key = authority.issue()
    with running(one_model, tls_cert=cert, tls_key=key, tls_client_ca=authority.ca) as server:
        yield server
